"""Documents, token files, windows, batches of rows and splits."""
