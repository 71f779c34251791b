"""The checkpoint format: a Hugging Face folder, and PEFT's for adapters."""
