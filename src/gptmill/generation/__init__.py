"""Decoding: sampling, beams, the KV cache of a batch, quantized weights, text."""
