"""The model of the blog post that this project grew from: its checkpoints and its evaluation."""
