"""Parts of `make sweep`: sweep file, search, worktree per trial, record."""
