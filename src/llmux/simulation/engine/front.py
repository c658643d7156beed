"""What Starlette and uvicorn put before an engine's endpoints: redirects, wrong methods, keys, origins."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web

from llmux.simulation.engine.options import EngineOptions
from llmux.simulation.engine.requests import MAX_BODY_BYTES, Refused

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]

_VLLMS_GUARDED_PREFIXES = ("/v1", "/v2", "/inference", "/cohere")
_PREFLIGHT_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


class Front:
    """Answers what no endpoint is needed for, and finds the endpoint for the rest."""

    def __init__(
        self,
        options: EngineOptions,
        endpoints: Mapping[str, Endpoint],
        *,
        is_guarded: Callable[[str], bool] = lambda path: path.startswith(_VLLMS_GUARDED_PREFIXES),
        refuse: Callable[[Refused], web.Response] = lambda refused: refused.response,
    ) -> None:
        """``endpoints``: by method and path, as in ``POST /v1/completions``.

        ``is_guarded`` says which paths need a key, ``refuse`` how an invalid request is answered.
        """
        self._options = options
        self._is_guarded = is_guarded
        self._refuse = refuse
        self._bearers = {f"Bearer {key}" for key in options.api_keys}
        self._by_path: dict[str, dict[str, Endpoint]] = {}
        for route, endpoint in endpoints.items():
            method, path = route.split(" ")
            self._by_path.setdefault(path, {})[method] = endpoint

    def application(self) -> web.Application:
        """A server's application that is nothing but this front."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{tail:.*}", self.handle)
        app.on_response_prepare.append(self.add_headers)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        path = self._path_of(request)
        if self._is_unauthorized(request, path):
            return web.json_response({"error": "Unauthorized"}, status=401)
        if _is_preflight(request):
            return self._preflight(request)
        by_method = self._by_path.get(path)
        if by_method is None:
            return self._elsewhere(request, path)
        endpoint = by_method.get(request.method)
        if endpoint is None:
            # HEAD too: FastAPI does not derive it from GET.
            allow = {hdrs.ALLOW: ", ".join(by_method)}
            return web.json_response({"detail": "Method Not Allowed"}, status=405, headers=allow)
        try:
            return await endpoint(request)
        except Refused as refused:
            return self._refuse(refused)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer has; to be called before its head is sent."""
        response.headers[hdrs.SERVER] = "uvicorn"
        if _is_preflight(request):
            return
        allowed = self._options.allowed_origins
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and "*" in allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        elif origin is not None and origin in allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.VARY] = "Origin"

    def _path_of(self, request: web.Request) -> str:
        root = self._options.root_path
        return request.path.removeprefix(root) if request.path.startswith(f"{root}/") else request.path

    def _is_unauthorized(self, request: web.Request, path: str) -> bool:
        if not self._bearers or request.method == hdrs.METH_OPTIONS or not self._is_guarded(path):
            return False
        return request.headers.get(hdrs.AUTHORIZATION) not in self._bearers

    def _elsewhere(self, request: web.Request, path: str) -> web.Response:
        """A path that differs from an endpoint's by its last slash is redirected, to the address in ``Host``."""
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if other not in self._by_path:
            return web.json_response({"detail": "Not Found"}, status=404)
        written = request.rel_url.raw_path
        written = written.rstrip("/") if written.endswith("/") else f"{written}/"
        query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
        return web.Response(status=307, headers={hdrs.LOCATION: f"http://{request.host}{written}{query}"})

    def _preflight(self, request: web.Request) -> web.Response:
        allowed, origin = self._options.allowed_origins, request.headers[hdrs.ORIGIN]
        headers = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: _PREFLIGHT_METHODS, hdrs.ACCESS_CONTROL_MAX_AGE: "600"}
        if asked := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        if "*" not in allowed:
            headers[hdrs.VARY] = "Origin"
        if "*" not in allowed and origin not in allowed:
            return web.Response(status=400, text="Disallowed CORS origin", headers=headers)
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if "*" in allowed else origin
        return web.Response(text="OK", headers=headers)


def _is_preflight(request: web.Request) -> bool:
    is_asked = hdrs.ORIGIN in request.headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    return request.method == hdrs.METH_OPTIONS and is_asked
