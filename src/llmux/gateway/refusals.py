"""What is refused by a request's head alone, before its body is read: by key, web page, method, type and encoding."""

from asyncio import Transport

from llmux.core.request import Priority
from llmux.errors import RequestError
from llmux.gateway.errors import UnknownPath
from llmux.gateway.http.request_head import RequestHead, require_no_encoding
from llmux.gateway.routing import Destination, Route, check_request
from llmux.gateway.state import GatewayState

_WITHOUT_KEY = frozenset((Destination.HEALTH, Destination.READY))
_CONTROL_API = b"/control"


def find_route(state: GatewayState, head: RequestHead, transport: Transport) -> Route:
    """The route of a request; raises RequestError."""
    try:
        return state.router.find(head.path)
    except RequestError:
        # An error about the path may tell which models there are.
        _authorize(state, head, transport)
        raise


def check_head(state: GatewayState, head: RequestHead, route: Route, transport: Transport) -> Priority:
    """Refuse what can be refused before the body; returns the highest priority that the request may have.

    Raises RequestError.
    """
    if route.destination in _WITHOUT_KEY:
        return Priority.INTERACTIVE
    if route.destination is Destination.CONTROL:
        if not route.path.startswith(_CONTROL_API):  # It has its own, stricter rules.
            _refuse_foreign_pages(state, head, transport)
        if state.options.control_protocol_factory is None:
            raise UnknownPath(head.path.decode("latin-1"))
        return Priority.INTERACTIVE
    priority = _authorize(state, head, transport)
    check_request(head, route)
    if head.content_encoding:
        require_no_encoding(head.content_encoding)
    return priority


def _authorize(state: GatewayState, head: RequestHead, transport: Transport) -> Priority:
    _refuse_foreign_pages(state, head, transport)
    return state.keys.authenticate(head)


def _refuse_foreign_pages(state: GatewayState, head: RequestHead, transport: Transport) -> None:
    if state.pages is not None:
        own_address = transport.get_extra_info("sockname")
        refusal = state.pages.refusal(head.host, head.origin, head.fetch_site, own_address)
        if refusal is not None:
            raise refusal
