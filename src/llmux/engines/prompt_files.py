"""The files of one model's saved prompts: which there are, whether they may be believed, and how much they may take.

The directory is one model's alone, and only one llmux uses it at a time. llama-server writes the files itself, in place
and under the final name, so a file says nothing about being whole. The manifest does: it is replaced atomically after
each file, and what it does not list is deleted at the next opening. It lists sizes too, because llama-server aborts
(``GGML_ASSERT``, exit status -6) when it restores a file that lacks its last bytes.

Files are never synced, which for gigabytes would take longer than the switch that they speed up. So the manifest names
the boot of the machine, and files of an earlier one are not believed.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

FORMAT = 1
MANIFEST = "prompts.json"
DRAFT = "prompts.json.draft"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FILE_NAME = re.compile(r"prompt-[0-9a-f]{16}\.kv")
"""Files with other names are not ours: they are neither believed nor deleted."""

ARGUMENTS_WITHOUT_EFFECT = frozenset(
    {
        *("--host", "--port", "--alias", "-a", "--api-key", "--api-key-file", "--slot-save-path", "--log-file"),
        *("--threads", "-t", "--threads-batch", "-tb", "--threads-http", "--timeout", "-to", "--cache-ram", "-cram"),
        *("--slot-prompt-similarity", "-sps", "--verbosity", "-lv", "--log-verbosity", "--parallel", "-np"),
        *("--metrics", "--no-ui", "--no-webui", "--offline", "--slots", "--no-cache-idle-slots"),
    }
)
"""Arguments that change no KV cache: all others are part of the identity, because a cache of another context length,
type, adapter or rope scaling can give wrong answers, while a lost one only costs reading a prompt again."""


def identity_of(model_files: Iterable[Path], arguments: Sequence[str]) -> str:
    """A digest of what a saved prompt depends on: the model's files and the arguments that the engine is started with.

    Files count by path, size and modification time, those that an argument names (adapters, control vectors) too.
    """
    kept = [
        word
        for before, word in zip(("", *arguments), arguments, strict=False)
        if word not in ARGUMENTS_WITHOUT_EFFECT and (word.startswith("-") or before not in ARGUMENTS_WITHOUT_EFFECT)
    ]
    named = [Path(piece) for word in kept if not word.startswith("-") for piece in re.split("[,:]", word)]
    files = sorted({stamp for path in (*model_files, *named) if (stamp := _stamp(path)) is not None})
    return _digest([files, kept])


def prompt_files_in(directory: Path) -> Sequence[Path]:
    """The files of saved prompts that are there, whatever they are worth. Reads the disk."""
    try:
        return sorted(entry for entry in directory.iterdir() if FILE_NAME.fullmatch(entry.name))
    except OSError:
        return ()


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """One file, which holds the KV cache of one slot."""

    file: str
    tokens: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    format: int
    identity: str
    boot_id: str
    prompts: tuple[SavedPrompt, ...]


class PromptFiles:
    """The saved prompts of one model, most recently used first, within a budget. Every method may raise OSError."""

    def __init__(self, directory: Path, budget_bytes: int) -> None:
        self.directory = directory
        self.budget_bytes = budget_bytes
        self.prompts: tuple[SavedPrompt, ...] = ()
        self.bytes_per_second: float | None = None
        """How fast the last file was written; None before the first."""
        self._identity = ""

    def open(self, identity: str) -> None:
        """Believe the files that were made under this identity and are as they were then; delete all others of ours."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._identity = _digest([identity])
        listed = self._read_manifest()
        whole = tuple(prompt for prompt in listed if self._is_whole(prompt))
        self.prompts = _within(whole, self.budget_bytes)
        self._delete_unlisted()
        if self.prompts != listed:
            self._write_manifest()

    def new_name(self) -> str:
        """A name under which nothing is saved yet."""
        return f"prompt-{secrets.token_hex(8)}.kv"

    def make_room(self, size_bytes: int, kept: Collection[SavedPrompt], first: SavedPrompt | None = None) -> bool:
        """Delete files until so many bytes fit: ``first``, then those used longest ago, never ``kept`` ones.

        Deletes nothing and returns False if they cannot fit.
        """
        if sum(prompt.size_bytes for prompt in kept) + size_bytes > self.budget_bytes:
            return False
        loose = [prompt for prompt in reversed(self.prompts) if prompt not in kept]
        loose.sort(key=lambda prompt: prompt != first)
        excess = sum(prompt.size_bytes for prompt in self.prompts) + size_bytes - self.budget_bytes
        for prompt in loose:
            if excess <= 0:
                break
            self.forget(prompt)
            excess -= prompt.size_bytes
        return True

    def add(
        self, file: str, tokens: int, before: Collection[SavedPrompt], replaced: SavedPrompt | None = None
    ) -> SavedPrompt | None:
        """Believe a file that llama-server has written, and delete the one that it has ``replaced``.

        It was used less recently than those ``before`` it, and more than all others. None if it is larger than what
        the budget leaves beside those: it is deleted.
        """
        path = self.directory / file
        path.chmod(0o600)
        status = path.stat()
        prompt = SavedPrompt(file, tokens, status.st_size, status.st_mtime_ns)
        if not self.make_room(prompt.size_bytes, before, replaced):
            path.unlink()
            return None
        others = (other for other in self.prompts if other not in before and other != replaced)
        self.prompts = (*(other for other in self.prompts if other in before), prompt, *others)
        self._write_manifest()
        if replaced is not None:
            self.discard(replaced.file)
        return prompt

    def forget(self, prompt: SavedPrompt) -> None:
        """Delete a file; whatever happens meanwhile, it is not believed any more."""
        self.prompts = tuple(other for other in self.prompts if other != prompt)
        self._write_manifest()
        self.discard(prompt.file)

    def discard(self, file: str) -> None:
        """Delete a file that is not listed, if it is there."""
        with suppress(FileNotFoundError, IsADirectoryError):
            (self.directory / file).unlink()

    def delete_all(self) -> None:
        """Delete every file of ours."""
        self.prompts = ()
        (self.directory / MANIFEST).unlink(missing_ok=True)
        self._delete_unlisted()

    def is_believed(self, prompt: SavedPrompt) -> bool:
        """Whether the file is still as it was when it was listed."""
        return prompt in self.prompts and self._is_whole(prompt)

    def _is_whole(self, prompt: SavedPrompt) -> bool:
        path = self.directory / prompt.file
        if not FILE_NAME.fullmatch(prompt.file) or path.is_symlink() or not path.is_file():
            return False
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (prompt.size_bytes, prompt.modified_ns)

    def _delete_unlisted(self) -> None:
        listed = {prompt.file for prompt in self.prompts}
        for path in self.directory.iterdir():
            if (FILE_NAME.fullmatch(path.name) and path.name not in listed) or path.name == DRAFT:
                self.discard(path.name)

    def _read_manifest(self) -> tuple[SavedPrompt, ...]:
        try:
            manifest = msgspec.json.decode((self.directory / MANIFEST).read_bytes(), type=_Manifest)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ()
        believed = (FORMAT, self._identity, _boot_id())
        return manifest.prompts if (manifest.format, manifest.identity, manifest.boot_id) == believed else ()

    def _write_manifest(self) -> None:
        manifest = _Manifest(FORMAT, self._identity, _boot_id(), self.prompts)
        draft = self.directory / DRAFT
        draft.write_bytes(msgspec.json.encode(manifest))
        draft.rename(self.directory / MANIFEST)


def _within(prompts: tuple[SavedPrompt, ...], budget_bytes: int) -> tuple[SavedPrompt, ...]:
    """The first ones that fit into the budget together."""
    taken = 0
    for index, prompt in enumerate(prompts):
        taken += prompt.size_bytes
        if taken > budget_bytes:
            return prompts[:index]
    return prompts


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        path = path.resolve()
        status = path.stat()
    except (OSError, ValueError, RuntimeError):
        return None
    return (str(path), status.st_size, status.st_mtime_ns) if path.is_file() else None


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
