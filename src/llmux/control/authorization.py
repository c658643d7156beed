"""Who may use the control API: clients with the admin key or, if none is configured, programs on this machine.

A loopback peer alone would not be enough: the operator's browser runs on this machine too, and a web page could send
requests to a loopback port. A foreign page is recognized by its Origin, and DNS rebinding by the Host header.
"""

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from multidict import MultiMapping

from llmux.host_names import is_local_name, is_loopback, is_same_origin

_FORWARDED = frozenset(
    """
    via forwarded x-real-ip x-client-ip x-cluster-client-ip x-original-host cf-connecting-ip cf-ray cdn-loop
    true-client-ip fastly-client-ip x-envoy-external-address
    """.split()  # noqa: SIM905
)
_FORWARDED_PREFIX = "x-forwarded-"
_REMEDY = "set admin_key in the configuration and send it as 'Authorization: Bearer KEY'"


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a request is denied. The status is 401 if a key would help, and 403 if it came a way that is not allowed."""

    status: int
    reason: str


def check_access(headers: MultiMapping[str], peer: str | None, admin_key: str | None) -> Denied | None:
    """None if the request is allowed. ``peer`` is the client's address, None if it is unknown."""
    return _check_local(headers, peer) if admin_key is None else _check_key(headers, admin_key)


def check_metrics(headers: MultiMapping[str], keys: Collection[str]) -> Denied | None:
    """None if the main port's metrics may be read: with one of the keys, if there are any."""
    if not keys or _presents(headers, keys):
        return None
    return Denied(
        401,
        "api_keys are set, and the main port's metrics need one of them or the admin_key: send it as 'Authorization: "
        "Bearer KEY', or scrape the metrics_port, which needs none",
    )


def _check_key(headers: MultiMapping[str], admin_key: str) -> Denied | None:
    if _presents(headers, (admin_key,)):
        return None
    if "X-Api-Key" not in headers and "Authorization" not in headers:
        return Denied(401, "the control API needs the admin_key: send it as 'Authorization: Bearer KEY' or 'x-api-key'")
    return Denied(401, "this is not the admin_key: send the one in the configuration as 'Authorization: Bearer KEY'")


def _presents(headers: MultiMapping[str], keys: Collection[str]) -> bool:
    presented = headers.getall("X-Api-Key", [])
    for value in headers.getall("Authorization", []):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            presented = [*presented, credentials.strip()]
    given = [key.encode("utf-8", "surrogateescape") for key in presented]
    return any(hmac.compare_digest(one, key.encode()) for one in given for key in keys)


def _check_local(headers: MultiMapping[str], peer: str | None) -> Denied | None:
    if peer is None or not is_loopback(peer):
        return Denied(403, f"without an admin_key the control API answers this machine only; {_REMEDY}")
    forwarded = next((name for name in headers if _is_from_proxy(name.lower())), None)
    if forwarded is not None:
        return Denied(403, f"the header {forwarded} says that the request came through a proxy; {_REMEDY}")
    hosts = headers.getall("Host", [])
    if len(hosts) != 1 or not is_local_name(hosts[0]):
        return Denied(403, f"the Host header must name this machine, as localhost or 127.0.0.1 do; or {_REMEDY}")
    if any(not is_same_origin(origin, hosts[0]) for origin in headers.getall("Origin", [])):
        return Denied(403, f"the request comes from a page of another origin; use a program instead, or {_REMEDY}")
    return None


def _is_from_proxy(name: str) -> bool:
    return name in _FORWARDED or name.startswith(_FORWARDED_PREFIX)
