"""Sources of raw data, fetched and converted to `data/` files."""
