import pytest

from llmux.checkpoints.fingerprint import fingerprint_of, without_port

ARGV = ("vllm", "serve", "model", "--port", "8000", "--dtype", "float16")
VLLM = {"prefixes": ("VLLM_",), "ignored": ("TMPDIR", "VLLM_RPC_BASE_PATH")}
ENVIRONMENT = {"VLLM_USE": "1", "TMPDIR": "/tmp/a", "VLLM_RPC_BASE_PATH": "/tmp/a", "SSH_CONNECTION": "x", "MINE": "1"}


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        (("vllm", "serve", "model", "--port", "9000", "--dtype", "float16"), ENVIRONMENT),
        (ARGV, {**ENVIRONMENT, "TMPDIR": "/tmp/b", "VLLM_RPC_BASE_PATH": "/tmp/b", "SSH_CONNECTION": "y"}),
    ],
)
def test_port_and_temporary_paths_and_other_variables_do_not_matter(
    argv: tuple[str, ...], environment: dict[str, str]
) -> None:
    assert fingerprint_of(argv, environment, ["MINE"], **VLLM) == fingerprint_of(ARGV, ENVIRONMENT, ["MINE"], **VLLM)


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        ((*ARGV[:-1], "float32"), ENVIRONMENT),
        (ARGV[:-2], ENVIRONMENT),
        (ARGV, {**ENVIRONMENT, "VLLM_USE": "0"}),
        (ARGV, {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "1"}),
        (ARGV, {**ENVIRONMENT, "MINE": "2"}),
    ],
)
def test_arguments_and_engine_variables_matter(argv: tuple[str, ...], environment: dict[str, str]) -> None:
    assert fingerprint_of(argv, environment, ["MINE"], **VLLM) != fingerprint_of(ARGV, ENVIRONMENT, ["MINE"], **VLLM)


def test_only_the_value_of_the_port_is_removed() -> None:
    assert without_port(["a", "--port", "8000", "--port=8000", "8000"]) == ["a", "--port", "", "--port=", "8000"]
