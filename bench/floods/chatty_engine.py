"""The simulated engine, which writes 40 KB a second to its standard output."""

import sys
import threading
import time

from llmux.simulation.engine.main import main


def _chat() -> None:
    while True:
        sys.stdout.write("chatter " * 25 + "\n")
        sys.stdout.flush()
        time.sleep(0.005)


if __name__ == "__main__":
    threading.Thread(target=_chat, daemon=True).start()
    main()
