"""Import and export of other formats: GGUF, TensorFlow, the book's .pth."""
