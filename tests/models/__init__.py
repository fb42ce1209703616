"""Models against transformers, and how checkpoints are read."""
