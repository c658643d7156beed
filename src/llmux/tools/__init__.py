"""Command-line jobs on one engine, without a server around it."""
