"""``python -m llmux.simulation.engine serve MODEL --port P ...``."""

from llmux.simulation.engine.main import main

main()
