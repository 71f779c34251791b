"""The `gptmill` command line, with a module per verb.

The verbs share frame.py, folders.py and options.py.
"""
