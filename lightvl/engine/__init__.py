"""The rank process: what is computed next, and computing it."""
