"""Models as compositions of layers, and how checkpoints are loaded into them."""
