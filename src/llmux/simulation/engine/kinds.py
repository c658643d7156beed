"""The kinds of engines that the program imitates, by the name that ``--sim-kind`` gives them."""

import sys
from collections.abc import Mapping, Sequence

from llmux.simulation.engine.comfyui import COMFYUI
from llmux.simulation.engine.kind import Kind
from llmux.simulation.engine.ollama_server import OLLAMA
from llmux.simulation.engine.plain import EMBEDDINGS, IMAGES
from llmux.simulation.engine.server import VLLM
from llmux.simulation.engine.sglang_server import SGLANG
from llmux.simulation.engine.speaches import SPEACHES

KINDS: Mapping[str, Kind] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "embeddings": EMBEDDINGS,
    "images": IMAGES,
    "comfyui": COMFYUI,
    "ollama": OLLAMA,
    "speaches": SPEACHES,
}
FLAG = "--sim-kind"
VARIABLE = "LLMUX_SIM_KIND"


def choose(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Kind, Sequence[str]]:
    """The kind that is asked for, by default vLLM, and the other arguments.

    ``--sim-kind NAME`` comes first, because what follows is read as the kind's own command line. Exits with code 2 for
    a kind that there is not.
    """
    name = environment.get(VARIABLE) or "vllm"
    if arguments[:1] == [FLAG]:
        name, arguments = (arguments[1] if len(arguments) > 1 else ""), arguments[2:]
    elif arguments and arguments[0].startswith(f"{FLAG}="):
        name, arguments = arguments[0].removeprefix(f"{FLAG}="), arguments[1:]
    if name not in KINDS:
        sys.stderr.write(f"{FLAG} is one of {', '.join(KINDS)}, not {name!r}\n")
        sys.exit(2)
    return KINDS[name], arguments
