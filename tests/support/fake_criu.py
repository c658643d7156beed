"""A program that behaves as criu does towards its caller, without dumping anything."""

import sys
from pathlib import Path

PROGRAM = """
import json, os, signal, sys, time
words = sys.argv[1:]
mode = os.environ.get("FAKE_CRIU", "good")
if words == ["--version"]:
    print("Version: " + os.environ.get("FAKE_CRIU_VERSION", "4.2.1"))
    sys.exit()
if words[0] == "check":
    sys.stderr.write("Warn  (criu/x.c:1): a warning\\nError (criu/cr-check.c:5): no such feature\\n")
    sys.exit(mode == "check fails" or (mode == "no nftables" and "--feature" in words))
value = lambda option: words[words.index(option) + 1]
images = value("--images-dir")
with open(os.path.join(images, value("--log-file")), "w") as log:
    log.write("(00.000001) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\\n")
    if mode == "bad":
        log.write("(00.1) 7: Error (criu/sk.c:9): inet: Can't bind\\n(00.2) Error (criu/cr.c:1): Dumping FAILED.\\n")
if mode == "half made" and os.fork() == 0:
    os.setsid()
    open(os.path.join(images, "half"), "w").write(str(os.getpid()))
    while True: signal.pause()
while mode == "half made" and not os.path.exists(os.path.join(images, "half")):
    time.sleep(0.005)
while mode in ("hang", "half made"):
    signal.pause()
if mode == "bad":
    sys.exit(1)
if words[0] == "dump":
    with open(os.path.join(images, "pages-1.img"), "w") as pages:
        pages.write("memory")
    os.killpg(int(value("--tree")), signal.SIGKILL)
"""
"""``FAKE_CRIU`` says what it does: good, bad, hang, half made (a restore), check fails, no nftables."""


def install(directory: Path) -> str:
    """Put the program there; returns its path."""
    program = directory / "criu"
    program.write_text(f"#!{sys.executable} -S\n{PROGRAM}")
    program.chmod(0o755)
    return str(program)
