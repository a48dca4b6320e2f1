"""A decoder-only Transformer you can read, train, publish and serve."""

__version__ = "0.1.0"
