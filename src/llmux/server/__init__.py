"""The composition root: builds everything that serves, and runs it."""
