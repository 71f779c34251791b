"""The command line `gptmill`: one file a verb, and what they share in frame.py."""
