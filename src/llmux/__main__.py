"""``python -m llmux``."""

from llmux.cli.main import main

main()
