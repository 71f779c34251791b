"""Read-only commands: values of params, rows of training data, comparisons."""
