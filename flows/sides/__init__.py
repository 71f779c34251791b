"""Sides of a comparison: a folder, a git revision, an MLflow run."""
