"""Scores with confidence intervals, baselines, and comparisons of models."""
