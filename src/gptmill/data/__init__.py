"""Documents, token files, windows, batches of rows, splits, markdown tables."""
