"""The model registry and the gate: versions of a pipeline run, champions, decisions."""
