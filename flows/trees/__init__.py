"""Worktrees: work on params and data apart from the user's own tree."""
