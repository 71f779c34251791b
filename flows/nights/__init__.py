"""Pipeline runs: what is asked, what is kept, and who is told."""
