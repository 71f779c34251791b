"""One module per `make` command, in groups."""
