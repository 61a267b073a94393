"""The decision: values and pure functions, without IO, clock or randomness."""
