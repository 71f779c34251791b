"""One file a stage; `python -m tasks STAGE` is the only door to them."""
