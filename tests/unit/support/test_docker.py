"""What the stand-in for docker understands of command lines, templates and addresses."""

import pytest

from tests.support.docker.containers import Image, Published, inside
from tests.support.docker.words import DockerError, parse, render


def test_a_run_takes_its_flags_before_the_image_and_leaves_the_rest() -> None:
    flags = ["--rm", "-it", "--name=n", "-p", "80:8000", "-p81:81", "-e", "A=1", "--gpus", "all"]
    command = parse(["run", *flags, "image", "serve", "--rm", "m", "-p", "1"])
    assert command.arguments == ["image", "serve", "--rm", "m", "-p", "1"]
    assert (command.is_set("rm"), command.is_set("interactive"), command.is_set("tty")) == (True, True, True)
    assert (command.one("name"), command.all("publish"), command.all("env")) == ("n", ["80:8000", "81:81"], ["A=1"])
    assert not parse(["run", "--sig-proxy=false", "i"]).is_set("sig-proxy", default=True)
    assert parse(["run", "i"]).is_set("sig-proxy", default=True)


def test_other_commands_take_flags_anywhere() -> None:
    command = parse(["stop", "n", "-t", "3", "m"])
    assert (command.arguments, command.one("time")) == (["n", "m"], "3")
    assert parse(["container", "inspect", "-f", "{{.Id}}", "n"]).one("format") == "{{.Id}}"


@pytest.mark.parametrize(
    ("line", "said", "code"),
    [
        ("run --no-such image", "unknown flag: --no-such", 125),
        ("run", "requires at least 1 argument", 125),
        ("stop", "requires at least 1 argument", 1),
        ("kill --no-such n", "unknown flag: --no-such", 1),
        ("stop -t", "flag needs an argument: -t", 1),
        ("pull image", "unknown command: docker pull", 1),
    ],
)
def test_what_it_does_not_understand(line: str, said: str, code: int) -> None:
    with pytest.raises(DockerError, match=said) as caught:
        parse(line.split())
    assert caught.value.exit_code == code


def test_templates() -> None:
    document = {"State": {"Running": True, "Pid": 5}, "Name": "/n"}
    assert render("{{.State.Running}} {{ .State.Pid }} {{.Name}}", document) == "true 5 /n"
    assert render("{{json .State}}", document) == '{"Running": true, "Pid": 5}'
    with pytest.raises(DockerError, match='no entry for key "Nothing"'):
        render("{{.State.Nothing}}", document)


def test_published_ports() -> None:
    assert Published.parse("8000") == Published("0.0.0.0", 0, 8000)
    assert Published.parse("81:8000/tcp") == Published("0.0.0.0", 81, 8000)
    assert Published.parse("127.0.0.1:81:8000") == Published("127.0.0.1", 81, 8000)
    assert Published.parse("127.0.0.1::8000") == Published("127.0.0.1", 0, 8000)
    with pytest.raises(DockerError, match="invalid publish"):
        Published.parse("x:y")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--port", "1"], ["--port", "1", "--host", "127.9.9.4"]),
        (["--host", "0.0.0.0"], ["--host", "127.9.9.4"]),
        (["--host=0.0.0.0", "m"], ["--host=127.9.9.4", "m"]),
        (["--host", "127.0.0.1"], ["--host", "127.9.9.5"]),
    ],
)
def test_addresses_inside_are_the_containers_own(words: list[str], expected: list[str]) -> None:
    assert inside(words, Image((), "--host"), "127.9.9.4") == expected
    assert inside(words, Image(()), "127.9.9.4") == words
