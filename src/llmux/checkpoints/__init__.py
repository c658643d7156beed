"""Checkpoints of engines: images made by criu, and everything around them that criu leaves to its caller."""
