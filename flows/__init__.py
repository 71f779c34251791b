"""Products: which stages make them, in which order. What `make` calls is here."""
