"""Looks for what usually goes wrong, before it does: the checks of ``llmux doctor``."""
