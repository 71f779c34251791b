"""gptmill: text, tensors and models; knows nothing of what orchestrates it."""
