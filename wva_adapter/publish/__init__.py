"""A Plan, told to the world."""
