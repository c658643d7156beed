"""What the command line does with one engine, without a server around it."""
