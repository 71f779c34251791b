"""Parts of `make sweep`: file, search, trial worktrees, record."""
