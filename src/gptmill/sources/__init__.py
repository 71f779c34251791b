"""Sources of raw data, fetched and converted into the files of `data/`."""
