"""A pipeline run in a terminal: its view, its log file, the run itself."""
