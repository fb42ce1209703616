"""What tests and benchmarks share: references, cases and tiny checkpoints."""
