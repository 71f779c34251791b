"""gptmill: text, tensors and models, independent of orchestration."""
