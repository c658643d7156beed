"""The same traces against a running llmux, in real time."""
