"""Running DVC, reading DVC pins and repairing DVC records."""
