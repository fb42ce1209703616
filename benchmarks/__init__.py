"""Benchmarks: kernels against peers, serving against other servers."""
