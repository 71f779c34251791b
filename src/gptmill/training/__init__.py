"""The training loop, on one device or many, resumable after any kill."""
