"""The parts that models are made of: weights and the operators that use them."""
