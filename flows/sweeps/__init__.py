"""What `make sweep` is made of: its file, the search, a worktree a trial, the record."""
