"""The configuration: frozen settings, one loader for YAML and JSON, checks across keys, the generated schema."""
