"""What each model needs of the GPUs, as far as it is known: said, or seen of its engines and remembered on disk."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import structlog

from llmux.config.placement import placements, said_need
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.core.identifiers import GpuId
from llmux.core.need import Need, NeedSource, SaidNeed, SeenNeed, need_on
from llmux.core.settings import Placement
from llmux.gpus.remembered import NeedStore, identity_of, key_of
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.outcomes import SeenMemory
from llmux.runtime.controller import Spawn

log = structlog.get_logger("llmux.gpus")


@dataclass(slots=True)
class _Known:
    """What is known of one model's need."""

    said: SaidNeed
    fingerprint: str
    """How the engine was, or would be, started of which ``seen`` tells."""
    seen: SeenNeed


class Needs:
    """The needs of all models that use the GPUs. What is seen of their engines is written to disk in the background."""

    def __init__(
        self,
        settings: Settings,
        specs: Mapping[str, EngineSpec],
        gpus: Mapping[GpuId, int],
        store: NeedStore,
        gpu_models: str,
        spawn: Spawn,
    ) -> None:
        """``gpu_models``: what kind of GPUs they are. Reads the disk, also the models' files."""
        self._settings = settings
        self._specs = specs
        self._gpus = gpus
        self._store = store
        self._gpu_identity = identity_of(gpu_models, gpus)
        self._spawn = spawn
        self._writing = asyncio.Lock()
        self._known = {name: self._recall(name, spec) for name, spec in specs.items() if spec.engine.uses_gpu}
        sizes = {gpu.uuid: mib for gpu, mib in gpus.items()}
        log.info("models are placed on the GPUs by their memory", gpus_mib=sizes)
        for name in self._known:
            self._warn_if_wrong(name)

    @property
    def seen(self) -> Mapping[str, SeenNeed]:
        """By model, what its engines were seen to hold."""
        return {name: known.seen for name, known in self._known.items()}

    def need_of(self, model: str, gpu: GpuId) -> Need:
        """What a model needs of a GPU. Raises KeyError for one that uses none."""
        return need_on(self._gpus[gpu], self._known[model].said, self._known[model].seen)

    def engine_seen(
        self,
        model: str,
        seen: SeenMemory,
        gpus: Collection[GpuId],
        eviction: Eviction | None = None,
        *,
        has_answered: bool = False,
    ) -> tuple[Placement, ...] | None:
        """An engine was seen to hold this of these GPUs. Returns where its model may be from now on, if that changes.

        ``eviction``: how it left before its residue was read. ``has_answered``: it has completed a request.
        """
        known = self._known[model]
        if self._specs[model].engine.canary is None and not has_answered:
            # Nobody has asked it anything, and it may load its weights only then.
            return None
        before, seen_before = self._placements(model), known.seen
        if seen.fingerprint != known.fingerprint:
            # The model's files are others than when llmux started.
            known.fingerprint, known.seen = seen.fingerprint, SeenNeed()
        self._note(known, seen, gpus, eviction)
        if known.seen == seen_before:
            return None
        self._spawn(self._remember(model))
        after = self._placements(model)
        if after == before:
            return None
        log.info(
            "measured what the model holds of its GPUs",
            model=model,
            awake_mib=seen.awake_mib,
            asleep_mib=seen.residue_mib,
        )
        if known.seen.awake_mib != seen_before.awake_mib:
            self._warn_if_wrong(model)
        return after

    def _note(self, known: _Known, seen: SeenMemory, gpus: Collection[GpuId], eviction: Eviction | None) -> None:
        awake_mib, residue_mib = known.seen.awake_mib, dict(known.seen.residue_mib)
        is_more = any(seen.awake_mib > need_on(self._gpus[gpu], known.said, known.seen).mib for gpu in gpus)
        is_first = known.said.source is NeedSource.UNKNOWN and not awake_mib
        # What is not told of its own processes may be others' too, unless it was alone, as one of unknown need is.
        if is_first or (is_more and seen.is_told):
            awake_mib = max(awake_mib, seen.awake_mib)
        if eviction is not None and seen.residue_mib is not None:
            residue_mib[eviction] = seen.residue_mib
        known.seen = SeenNeed(awake_mib, residue_mib)

    def _placements(self, model: str) -> tuple[Placement, ...]:
        return placements(self._settings, model, self._gpus, self._known[model].seen)

    def _recall(self, name: str, spec: EngineSpec) -> _Known:
        fingerprint = spec.fingerprint()
        return _Known(said_need(self._settings, name), fingerprint, self._store.read(self._key(fingerprint)))

    async def _remember(self, model: str) -> None:
        async with self._writing:
            known = self._known[model]
            await asyncio.to_thread(self._store.write, self._key(known.fingerprint), model, replace(known.seen))

    def _key(self, fingerprint: str) -> str:
        return key_of(fingerprint, self._gpu_identity)

    def _warn_if_wrong(self, model: str) -> None:
        """Say that an engine takes more than the configuration says: from now on it is placed by what it takes."""
        known = self._known[model]
        said_mib = min(known.said.on(total) for total in self._gpus.values())
        if known.said.source is NeedSource.DECLARED and known.seen.awake_mib > said_mib:
            log.warning(
                "the model's gpu_memory is too small: its engine was seen to hold more, by which it is placed now",
                model=model,
                gpu_memory_mib=said_mib,
                seen_mib=known.seen.awake_mib,
                remedy=f"set gpu_memory to at least {known.seen.awake_mib}MiB, or have the engine take less",
            )
