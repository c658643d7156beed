"""What no policy can do better than; docs/simulation.md has the argument."""
