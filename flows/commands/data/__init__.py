"""Commands for raw data and base weights."""
