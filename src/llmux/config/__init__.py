"""The configuration: frozen settings, the one loader for YAML and JSON, the checks across keys, the JSON schema."""
