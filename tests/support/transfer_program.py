"""A process that copies one image to an object store or from it, to be killed in the middle.

Its arguments: the direction, the store's endpoint and bucket, criu, the images directory.
"""

import asyncio
import sys
from pathlib import Path

from llmux.checkpoints import criu, images
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings
from llmux.checkpoints.image_transfers import ImageTransfers
from tests.support.s3_server import S3Server
from tests.support.stored_images import FINGERPRINT


async def main(direction: str, endpoint: str, bucket: str, program: str, directory: str) -> None:
    criu._check_privileges = lambda: None
    checkpointer = Checkpointer(CriuSettings(program, None, Path(directory)))
    transfers = ImageTransfers(S3Server(endpoint, bucket).open(), f"s3://{bucket}", checkpointer)
    image = images.image_path(Path(directory), "m", frozen=False)
    await checkpointer.check()
    print("begins", flush=True)  # noqa: T201
    if direction == "upload":
        await transfers.upload("m", image)
    else:
        await transfers.fetch("m", image, FINGERPRINT)
    print("ended", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
