"""Commands that bring raw data and base weights in."""
