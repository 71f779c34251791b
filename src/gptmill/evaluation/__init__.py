"""Scores with intervals, their baselines, and comparisons of models."""
