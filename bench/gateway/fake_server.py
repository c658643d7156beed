"""The real gateway before an in-memory desk: what the data plane costs by itself.

``python fake_server.py PORT UPSTREAM_PORT MODELS``
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import uvloop

from llmux.gateway import Gateway, GatewayOptions
from llmux.runtime.lease import Lease, LeaseHolder, Outcome, Upstream


class BenchDesk:
    """Every model is awake; what is in flight and completed is counted per model."""

    def __init__(self, names: Sequence[str], upstream: Upstream) -> None:
        self.models = names
        self._upstreams = dict.fromkeys(names, upstream)
        self._requests = 0
        self._in_flight: Counter[str] = Counter()
        self._completed: Counter[str] = Counter()

    def knows(self, model: str) -> bool:
        return model in self._upstreams

    def acquire(self, model: str, holder: LeaseHolder, *, size_bytes: int, may_wake: bool = True) -> int:
        self._requests += 1
        number = self._requests
        self._in_flight[model] += 1
        holder.lease_granted(Lease(number, model, self._upstreams[model], 0.0, None))
        return number

    def cancel(self, request: int) -> None: ...

    def end(self, lease: Lease, outcome: Outcome) -> None:
        self._in_flight[lease.model] -= 1
        self._completed[lease.model] += 1

    def give_back(self, lease: Lease, reason: str) -> None:
        raise AssertionError(f"an engine was lost: {reason}")

    def confirm_alive(self, lease: Lease, report: Callable[[bool], None]) -> None:
        report(True)


async def main(port: int, upstream_port: int, models: int) -> None:
    names = [f"model-{number:02d}" for number in range(models)]
    desk = BenchDesk(names, Upstream("127.0.0.1", upstream_port))
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(desk, GatewayOptions(), tasks.create_task)
        await gateway.listen("127.0.0.1", port)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
