"""Commands to run stages."""
