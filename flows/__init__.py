"""Commands behind `make`, and the order of the pipeline's stages."""
