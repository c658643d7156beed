"""The command line; each command is a module, or one function of a module with related ones."""
