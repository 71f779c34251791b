"""Text generation: sampling, beam search, batched KV cache, quantized weights."""
