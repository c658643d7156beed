"""Keeps the images of all models within their budget on this machine's disk."""

import asyncio
import time
from collections.abc import Mapping

import structlog

from llmux.checkpoints.budget import choose
from llmux.instances.checkpoint_store import CheckpointStore

log = structlog.get_logger("llmux.images")

MIB = 1 << 20


class ImageBudget:
    """Gives up images of these models when a dump or a download has exceeded the budget.

    Images of other models, and what another llmux keeps in the same directory, are neither counted nor touched.
    """

    def __init__(self, stores: Mapping[str, CheckpointStore], budget_bytes: int, changed: asyncio.Event) -> None:
        """``changed`` is set by whoever makes an image or copies one."""
        self._stores = stores
        self._budget_bytes = budget_bytes
        self._changed = changed
        self._has_warned = False

    async def run(self) -> None:
        """Enforce the budget after every change, until cancelled."""
        while True:
            await self.enforce()
            await self._changed.wait()
            self._changed.clear()

    async def enforce(self) -> None:
        """Give up as many images as must go."""
        found = [await store.local_image() for store in self._stores.values()]
        images = [image for image in found if image is not None]
        for image in choose(images, self._budget_bytes, time.time()):
            if await self._stores[image.model].delete_local_copy():
                images.remove(image)
                log.info("image given up for images_budget", model=image.model, mib=image.size_bytes // MIB)
        excess = sum(image.size_bytes for image in images) - self._budget_bytes
        if excess > 0 and not self._has_warned:
            reason = "each of them holds its engine and is not in an object store"
            log.warning("images exceed images_budget", excess_mib=excess // MIB, reason=reason)
        self._has_warned = excess > 0
