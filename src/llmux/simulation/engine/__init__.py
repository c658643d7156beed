"""A real HTTP server with vLLM's command line, endpoints and vices, and no GPU."""
