"""Operators against torch's own, side by side in one run."""
