"""A model, a directory, the Hugging Face Hub: how one becomes the other."""
