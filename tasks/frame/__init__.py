"""What every stage gets: checked inputs, a run, resuming, several ranks."""
