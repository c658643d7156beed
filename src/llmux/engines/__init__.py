"""What llmux knows of each kind of engine, one module per kind; no I/O but calls to the engine itself."""
