"""A simulated engine: a real HTTP server with vLLM's command line, endpoints and faults, and no GPU."""
