"""The composition root: builds all parts of a server from the settings, and runs it."""
