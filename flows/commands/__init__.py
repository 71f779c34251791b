"""A module per `make` command, in groups."""
