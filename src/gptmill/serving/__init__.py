"""OpenAI-compatible server for a single model, with a chat page."""
