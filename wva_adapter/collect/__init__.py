"""The world, read into a Snapshot."""
