"""The model of the blog post that this project grew from: its checkpoints and its evaluation."""

from transformer.legacy.blog_model import BlogConfig, BlogTransformer, model_class, preset_config, saved_config

__all__ = ["BlogConfig", "BlogTransformer", "model_class", "preset_config", "saved_config"]
