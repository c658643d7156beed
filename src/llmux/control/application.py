"""The control API as aiohttp applications: routes, and what every answer has in common."""

from importlib.resources import files

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from llmux.control.access import check_access
from llmux.control.bodies import (
    MAX_BODY_BYTES,
    BadBody,
    EvictionBody,
    ModeBody,
    ModelBody,
    SleepBody,
    error_answer,
    json_answer,
    message,
    read_body,
)
from llmux.control.status import eviction_document, logs_document, status_document, story_document
from llmux.control.wording import process_state
from llmux.errors import CommandFailed, EvictionRefused, ModelNotFound
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.control")

CONTROL_PREFIX = "/control"
MODES = {"auto": False, "manual": True}
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)


def new_application(admin_key: str | None) -> web.Application:
    """An application without routes, which answers every error in JSON and guards what is under ``/control``."""
    return web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_errors, _guard(admin_key)])


def add_control(application: web.Application, operations: Operations) -> None:
    """The operator's routes: 0.7.7's nine, each model's story, and its engine's last output."""
    routes = _ControlRoutes(operations)
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
            web.get("/control/models/{model:.+}/story", routes.story),
            web.get("/control/models/{model:.+}/logs", routes.logs),
        ]
    )


def add_metrics(application: web.Application, registry: CollectorRegistry) -> None:
    """``/metrics``, open to everybody who can connect, as scrapers expect."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application.router.add_get("/metrics", metrics)


def add_page(application: web.Application) -> None:
    """``/``: the status page. It holds no data itself; what it shows comes from the guarded routes."""
    text = files("llmux.control").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html", headers=headers)

    application.router.add_get("/", page)


class _ControlRoutes:
    """One method for each route. Commands wait for their end; a client that leaves stops nothing."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def status(self, _request: web.Request) -> web.Response:
        return json_answer(status_document(self._operations))

    async def mode(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModeBody)
        manual = MODES.get(body.mode)
        if manual is None:
            text = f"unknown mode '{body.mode[:100]}': use 'auto' or 'manual'"
            return json_answer({"message": text, "error": text}, 400)
        self._operations.set_mode(manual=manual)
        return message(f"mode is {body.mode}")

    async def pin(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModelBody)
        await self._operations.pin(body.model)
        return message(f"'{body.model}' is active and pinned")

    async def unpin(self, _request: web.Request) -> web.Response:
        self._operations.set_mode(manual=False)
        return message("no model is pinned, mode is auto")

    async def switch(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModelBody)
        await self._operations.switch(body.model)
        return message(f"'{body.model}' is active")

    async def evictions(self, _request: web.Request) -> web.Response:
        return json_answer(eviction_document(self._operations))

    async def set_eviction(self, request: web.Request) -> web.Response:
        body = await read_body(request, EvictionBody)
        eviction = body.eviction.meaning()
        self._operations.set_eviction(body.model, eviction)
        return message(f"'{body.model}' leaves the GPU by {eviction} from its next time on, until llmux ends")

    async def sleep(self, request: web.Request) -> web.Response:
        body = await read_body(request, SleepBody)
        await self._operations.sleep(body.model, body.eviction.meaning() if body.eviction else None)
        return message(f"'{body.model}' is {process_state(self._operations.model_status(body.model).state)}")

    async def wake(self, request: web.Request) -> web.Response:
        body = await read_body(request, ModelBody)
        await self._operations.wake(body.model)
        return message(f"'{body.model}' is awake")

    async def story(self, request: web.Request) -> web.Response:
        return json_answer(story_document(self._operations, request.match_info["model"]))

    async def logs(self, request: web.Request) -> web.Response:
        return json_answer(logs_document(self._operations, request.match_info["model"]))


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadBody as error:
        return error_answer(error.status, str(error))
    except ModelNotFound as error:
        return error_answer(404, str(error))
    except EvictionRefused as error:
        return error_answer(422, str(error))
    except CommandFailed as error:
        return error_answer(500, str(error))
    except web.HTTPException as error:
        return _in_our_words(request, error)
    except Exception as error:
        log.exception("unexpected error", path=request.path)
        return error_answer(500, f"unexpected error in llmux, see its log: {type(error).__name__}")


def _in_our_words(request: web.Request, error: web.HTTPException) -> web.Response:
    path = request.path[:200]
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            answer = error_answer(405, f"{error.method} is not possible on {path}; use {allowed}")
            answer.headers["Allow"] = allowed
            return answer
        case web.HTTPNotFound():
            return error_answer(404, f"no such path: {path}")
        case web.HTTPRequestEntityTooLarge():
            return error_answer(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        case _:
            return error_answer(error.status, error.reason)


def _guard(admin_key: str | None) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == CONTROL_PREFIX or request.path.startswith(f"{CONTROL_PREFIX}/"):
            refused = check_access(request.headers, _peer(request), admin_key)
            if refused is not None:
                answer = error_answer(refused.status, refused.reason)
                if refused.status == 401:
                    answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        return await handler(request)

    return guard


def _peer(request: web.Request) -> str | None:
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else None
