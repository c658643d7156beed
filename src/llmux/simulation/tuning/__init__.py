"""Looks for settings under which a recorded trace would have been served sooner."""
