"""The control API as aiohttp applications: routes, errors as JSON, and the check of who may use it."""

import asyncio
import os
from collections.abc import Collection
from importlib.resources import files

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from llmux.control.authorization import Denied, check_access, check_metrics
from llmux.control.bodies import (
    MAX_BODY_BYTES,
    BadBody,
    EvictionBody,
    ModeBody,
    ModelBody,
    PinBody,
    SleepBody,
    done,
    error_response,
    json_response,
    read_body,
)
from llmux.control.leases import LeaseRoutes, leases_document
from llmux.control.status import eviction_document, history_document, logs_document, process_state, status_document
from llmux.core.identifiers import VISIBLE_GPUS
from llmux.errors import CommandFailed, EvictionRefused, ModelNotFound
from llmux.gateway.pages import PagePolicy
from llmux.runtime.gpu_leases import GpuLeases, LeaseRefused, LeaseUnknown
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.control")

CONTROL_PREFIX = "/control"
METRICS_PATH = "/metrics"
MODES = {"auto": False, "manual": True}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)


def new_application(
    admin_key: str | None, metrics_keys: Collection[str] = (), pages: PagePolicy | None = None
) -> web.Application:
    """An application without routes that answers errors in JSON and denies its paths to those who may not use them.

    With ``metrics_keys``, ``/metrics`` needs one of them; with ``pages``, foreign web pages are refused there.
    """
    authorize = _authorize(admin_key, metrics_keys, pages)
    application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_errors, authorize])
    application.on_response_prepare.append(_drop_server)
    return application


async def _drop_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)  # Versions of libraries are of use to attackers only.


def add_control(application: web.Application, operations: Operations, leases: GpuLeases) -> None:
    """Add the operator's routes: 0.7.7's nine, each model's history, its engine's last output, and GPU leases."""
    routes = _ControlRoutes(operations, leases)
    of_leases = LeaseRoutes(leases, os.environ.get(VISIBLE_GPUS))
    application.add_routes(
        [
            web.get("/control/status", routes.status),
            web.post("/control/mode", routes.mode),
            web.post("/control/pin", routes.pin),
            web.post("/control/unpin", routes.unpin),
            web.post("/control/switch", routes.switch),
            web.get("/control/eviction", routes.evictions),
            web.post("/control/eviction", routes.set_eviction),
            web.post("/control/sleep", routes.sleep),
            web.post("/control/wake", routes.wake),
            web.get("/control/models/{model:.+}/story", routes.history),
            web.get("/control/models/{model:.+}/logs", routes.logs),
            web.get("/control/leases", of_leases.list),
            web.post("/control/leases", of_leases.ask),
            web.delete("/control/leases/{number:[0-9]{1,9}}", of_leases.end),
        ]
    )


def add_metrics(application: web.Application, registry: CollectorRegistry) -> None:
    """Add ``/metrics``."""

    one_at_a_time = asyncio.Lock()

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with one_at_a_time:
            # Rendering takes milliseconds, and anybody may ask: between two, others have their turn.
            await asyncio.sleep(0)
            return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application.router.add_get(METRICS_PATH, metrics)


def add_page(application: web.Application) -> None:
    """Add the status page at ``/``. It needs no key: the page holds no data and fetches it from ``/control``."""
    text = files("llmux.control").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html", headers=headers)

    application.router.add_get("/", page)


class _ControlRoutes:
    """One method per route. A command's response comes when it has ended; a client that disconnects stops nothing."""

    def __init__(self, operations: Operations, leases: GpuLeases) -> None:
        self._operations = operations
        self._leases = leases

    async def status(self, _request: web.Request) -> web.Response:
        return json_response(status_document(self._operations) | {"gpu_leases": leases_document(self._leases)})

    async def mode(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModeBody)
        manual = MODES.get(body.mode)
        if manual is None:
            reason = f"unknown mode '{body.mode[:100]}': use 'auto' or 'manual'"
            # 0.7.7 puts the reason into "message" here; "error" is where every other response has it.
            return json_response({"message": reason, "error": reason}, 400)
        self._operations.set_mode(manual=manual)
        return done(f"mode is {body.mode}")

    async def pin(self, request: web.Request) -> web.Response:
        body = await read_body(request, PinBody)
        if body.keep:
            await self._operations.keep(body.model)
            return done(f"'{body.model}' is on the GPU and stays there; others are served beside it")
        await self._operations.pin(body.model)
        return done(f"'{body.model}' is active and pinned")

    async def unpin(self, _request: web.Request) -> web.Response:
        self._operations.unpin()
        return done("no model is pinned, mode is auto")

    async def switch(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModelBody)
        await self._operations.switch(body.model)
        return done(f"'{body.model}' is active")

    async def evictions(self, _request: web.Request) -> web.Response:
        return json_response(eviction_document(self._operations))

    async def set_eviction(self, request: web.Request) -> web.Response:
        body = await read_body(request, EvictionBody)
        eviction = body.eviction.eviction()
        self._operations.set_eviction(body.model, eviction)
        return done(f"'{body.model}' leaves the GPU by {eviction} from its next time on, until llmux ends")

    async def sleep(self, request: web.Request) -> web.Response:
        body = await read_body(request, SleepBody)
        await self._operations.sleep(body.model, body.eviction.eviction() if body.eviction else None)
        return done(f"'{body.model}' is {process_state(self._operations.model_status(body.model).state)}")

    async def wake(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModelBody)
        await self._operations.wake(body.model)
        return done(f"'{body.model}' is awake")

    async def history(self, request: web.Request) -> web.Response:
        return json_response(history_document(self._operations, request.match_info["model"]))

    async def logs(self, request: web.Request) -> web.Response:
        return json_response(logs_document(self._operations, request.match_info["model"]))


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadBody as error:
        return error_response(error.status, str(error))
    except ModelNotFound as error:
        return error_response(404, str(error))
    except EvictionRefused as error:
        return error_response(422, str(error))
    except CommandFailed as error:
        return error_response(500, str(error))
    except LeaseRefused as error:
        return error_response(503 if error.is_passing else 422, str(error))
    except LeaseUnknown as error:
        return error_response(404, str(error))
    except web.HTTPException as error:
        return _http_error_response(request, error)
    except Exception as error:
        log.exception("unexpected error", path=request.path)
        return error_response(500, f"unexpected error in llmux, see its log: {type(error).__name__}")


def _http_error_response(request: web.Request, error: web.HTTPException) -> web.Response:
    path = request.path[:200]
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            response = error_response(405, f"{error.method} is not possible on {path}; use {allowed}")
            response.headers["Allow"] = allowed
            return response
        case web.HTTPNotFound():
            return error_response(404, f"no such path: {path}")
        case web.HTTPRequestEntityTooLarge():
            return error_response(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        case _:
            return error_response(error.status, error.reason)


def _authorize(admin_key: str | None, metrics_keys: Collection[str], pages: PagePolicy | None) -> Middleware:
    def denial(request: web.Request) -> Denied | None:
        if request.path == CONTROL_PREFIX or request.path.startswith(f"{CONTROL_PREFIX}/"):
            return check_access(request.headers, _peer(request), admin_key)
        if request.path != METRICS_PATH:
            return None
        refusal = _page_refusal(request, pages)
        return refusal or check_metrics(request.headers, metrics_keys)

    @web.middleware
    async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
        denied = denial(request)
        if denied is None:
            return await handler(request)
        response = error_response(denied.status, denied.reason)
        if denied.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    return authorize


def _page_refusal(request: web.Request, pages: PagePolicy | None) -> Denied | None:
    if pages is None or request.transport is None:
        return None
    host, origin, site = (
        value.encode("utf-8", "surrogateescape") if value is not None else None
        for value in (request.headers.get(name) for name in ("Host", "Origin", "Sec-Fetch-Site"))
    )
    refusal = pages.refusal(host, origin, site, request.transport.get_extra_info("sockname"))
    return None if refusal is None else Denied(403, str(refusal))


def _peer(request: web.Request) -> str | None:
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else None
