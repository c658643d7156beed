"""The engine as 0.7.7 ran it: its environment, and its output in the log."""

from pathlib import Path

from tests.support.bench import OFFLOAD, serving
from tests.support.engines import vllm_engine
from tests.support.server import SIMULATED_ENGINE


def test_an_engine_that_may_be_dumped_uses_no_io_uring() -> None:
    dumped = vllm_engine().environment({"INHERITED": "1"}, "/short", checkpointable=True)
    assert dumped.items() >= {"INHERITED": "1", "UV_USE_IO_URING": "0", "USE_LIBUV": "0"}.items()
    other = vllm_engine().environment({}, "/short", checkpointable=False)
    assert not {"UV_USE_IO_URING", "USE_LIBUV"} & other.keys()


async def test_its_lines_are_logged_with_model_and_stream_and_without_escape_sequences(tmp_path: Path) -> None:
    program = tmp_path / "colourful"
    program.write_text(
        "#!/bin/sh\n"
        "printf '\\033[1;32mfine \\033[0mso far\\n'\n"
        "printf '\\033[31mwatch out\\033[0m\\n' >&2\n"
        f'exec "{SIMULATED_ENGINE}" "$@"\n'
    )
    program.chmod(0o755)
    async with serving({"a": OFFLOAD}, tmp_path, vllm_command=str(program), log_level="debug") as bench:
        await bench.expect("a")
        await bench.server.wait_for_log(r"fine so far .*model=a stream=stdout")
        await bench.server.wait_for_log(r"watch out .*model=a stream=stderr")
