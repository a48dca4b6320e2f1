"""Text to tokens and back. Knows nothing of the model."""
