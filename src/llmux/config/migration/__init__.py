"""Reads configurations of other programs (llama-swap's YAML, llama.cpp's presets) and writes llmux's."""
