"""Serving benchmarks and the checkpoints that they use."""
