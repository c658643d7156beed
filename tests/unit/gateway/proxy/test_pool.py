"""Which connections to an engine are kept, and for how long."""

import math
import time
from unittest.mock import Mock

from llmux.access import Upstream
from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.engine_connection import EngineConnection
from llmux.gateway.proxy.flow_control import PauseReason
from llmux.gateway.proxy.pool import ConnectionSeeker, EnginePool, EnginePools
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.statistics import GatewayStatistics
from tests.support.gateway import FakeTransport

UPSTREAM = Upstream("127.0.0.1", 8001)


def idle_connection(pool: EnginePool) -> EngineConnection:
    engine = EngineConnection(pool)
    engine.connection_made(FakeTransport())
    engine.become_idle()
    return engine


def pools(options: GatewayOptions | None = None) -> EnginePools:
    return EnginePools(options or GatewayOptions(), GatewayStatistics(), Turns([].append))


def is_aborted(engine: EngineConnection) -> bool:
    transport = engine._transport
    assert isinstance(transport, FakeTransport)
    return transport.aborted


def test_the_connection_used_last_is_taken_first() -> None:
    pool = pools().of(UPSTREAM)
    first, second = idle_connection(pool), idle_connection(pool)
    assert [pool.take(), pool.take(), pool.take()] == [second, first, None]


def test_connections_beyond_the_limit_are_closed() -> None:
    pool = pools(GatewayOptions(max_idle_per_engine=1)).of(UPSTREAM)
    kept, closed = idle_connection(pool), idle_connection(pool)
    assert (is_aborted(kept), is_aborted(closed)) == (False, True)


def test_a_pool_is_dropped_once_its_last_connection_has_been_closed() -> None:
    all_pools = pools()
    pool = all_pools.of(UPSTREAM)
    engine = idle_connection(pool)
    now = time.monotonic()
    all_pools.expire(now + 3.0)
    assert not is_aborted(engine) and all_pools.of(UPSTREAM) is pool
    all_pools.expire(now + 5.0)
    assert is_aborted(engine) and all_pools.of(UPSTREAM) is pool
    engine.connection_lost(None)
    all_pools.expire(now + 5.0)
    assert all_pools.of(UPSTREAM) is not pool


def test_a_pool_is_kept_for_a_connection_that_is_about_to_be_made() -> None:
    all_pools = pools()
    pool = all_pools.of(UPSTREAM)
    connecting = pool.connect(Mock(spec=ConnectionSeeker), 1)
    all_pools.expire(time.monotonic())
    assert all_pools.of(UPSTREAM) is pool
    all_pools.forget(UPSTREAM)
    all_pools.expire(time.monotonic())
    all_pools.sever(UPSTREAM)
    late = EngineConnection(pool)
    late.connection_made(FakeTransport())
    assert is_aborted(late)
    connecting.close()


def test_forgetting_an_upstream_closes_idle_connections_now_and_others_when_they_become_idle() -> None:
    all_pools = pools()
    pool = all_pools.of(UPSTREAM)
    busy, idle = idle_connection(pool), idle_connection(pool)
    assert pool.take() is idle and pool.take() is busy
    pool.put(idle)
    all_pools.forget(Upstream("127.0.0.1", 8001))
    assert (is_aborted(idle), is_aborted(busy)) == (True, False)
    busy.become_idle()
    assert is_aborted(busy)
    assert all_pools.of(UPSTREAM) is not pool


def test_severing_an_upstream_closes_every_connection_also_those_forgotten_before() -> None:
    all_pools = pools()
    pool = all_pools.of(UPSTREAM)
    suspended, idle = idle_connection(pool), idle_connection(pool)
    assert pool.take() is idle and pool.take() is suspended
    all_pools.forget(UPSTREAM)
    later = all_pools.of(UPSTREAM)
    busy, other = idle_connection(later), idle_connection(all_pools.of(Upstream("127.0.0.1", 8002)))
    later.take()
    all_pools.sever(Upstream("127.0.0.1", 8001))
    assert [*map(is_aborted, (suspended, idle, busy, other))] == [True, True, True, False]
    late = EngineConnection(later)
    late.connection_made(FakeTransport())
    assert is_aborted(late) and not late.usable, "it was being made meanwhile"
    for engine in (suspended, idle, busy, late):
        engine.connection_lost(None)
    all_pools.expire(time.monotonic())
    assert all_pools._forgotten == []


def test_each_engines_connections_are_kept_as_long_as_it_says() -> None:
    all_pools = pools()
    assert all_pools.shortest_keep_alive_seconds == math.inf
    brief, patient = (
        idle_connection(all_pools.of(Upstream("127.0.0.1", port, keep_alive_seconds=seconds)))
        for port, seconds in ((1, 0.5), (2, 60.0))
    )
    assert all_pools.shortest_keep_alive_seconds == 0.5
    now = time.monotonic()
    all_pools.expire(now + 1.0)
    assert (is_aborted(brief), is_aborted(patient)) == (True, False)
    all_pools.expire(now + 61.0)
    assert is_aborted(patient)


def test_an_idle_connection_has_no_reason_to_pause() -> None:
    engine = idle_connection(pools().of(UPSTREAM))
    engine.flow.pause(PauseReason.CLIENT_FULL)
    engine.become_idle()
    assert not engine.flow.reasons
