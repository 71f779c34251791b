"""All that runs DVC, reads its pins or repairs its records."""
