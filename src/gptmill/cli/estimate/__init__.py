"""`gptmill estimate`: memory, time and disk of a training from shapes alone."""
