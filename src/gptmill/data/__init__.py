"""Documents, token files, windows, batches of rows, splits, and tables as markdown."""
