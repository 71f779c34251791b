"""Text to token ids and back, and the chat templates that turn messages into ids."""
