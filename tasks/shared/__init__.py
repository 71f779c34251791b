"""What several stages share and what can change their bytes."""
