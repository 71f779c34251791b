"""A user's own texts, labels and conversations, read in the forms people have them."""
