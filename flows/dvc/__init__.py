"""Modules that run DVC, read its pins and repair its records."""
