"""Operators beside the best kernels there are, side by side in one run."""
