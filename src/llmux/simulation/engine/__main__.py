"""``python -m llmux.simulation.engine [--sim-kind KIND] ...``, by default ``serve MODEL --port P ...`` of vLLM."""

from llmux.simulation.engine.main import main

main()
