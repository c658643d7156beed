"""GPU memory: reading it, and waiting until enough of it is free."""
