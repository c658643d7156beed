"""Simulated engines: real HTTP servers with the command lines, endpoints and faults of vLLM and others, and no GPU."""
