"""Where raw data comes from, and how what was fetched becomes the files of `data/`."""
