"""One running engine: its command line, its control endpoints, its process, its output."""
