"""The report on one run: figures, curves, answers, mistakes and cost on a page."""
