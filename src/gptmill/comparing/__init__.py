"""Comparison of two sides: paired tests on common rows, verdicts in words, a page."""
