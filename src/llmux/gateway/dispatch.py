"""What a complete request asks for: which model, with which body, or which of llmux's own answers."""

from typing import NamedTuple

from llmux.errors import MalformedRequest, MethodNotAllowed, MissingModel, ModelNotFound, UnknownPath
from llmux.gateway.body_model import model_in_form, model_in_json, read_json, replace_model
from llmux.gateway.options import LocalAnswer, LocalRoutes
from llmux.gateway.request_head import RequestHead
from llmux.gateway.routing import Destination, Route


class Wanted(NamedTuple):
    """What is to be sent to which model, and whether the answer shall come in pieces."""

    model: str
    body: bytes
    streams: bool


def find_model(head: RequestHead, route: Route, body: bytes) -> Wanted:
    """The model's name, and the body for the engine.

    The header wins over the path, the path over the body. The body is changed only if it is JSON and names another
    model than header or path. Raises MissingModel, InvalidJson or MalformedRequest.
    """
    if head.model_override is not None:
        try:
            name = head.model_override.decode().strip()
        except UnicodeDecodeError:
            raise MalformedRequest("the model-override header is not UTF-8") from None
        if not name:
            raise MissingModel
    elif route.model is not None:
        name = route.model
    elif head.is_form:
        return Wanted(model_in_form(body, head.content_type), body, streams=False)
    else:
        name, streams = model_in_json(body)
        return Wanted(name, body, streams)
    streams = False
    if body and not head.is_form:
        inside = read_json(body)
        if inside is not None:
            streams = inside.streams
            if inside.model is not None and inside.model != name:
                body = replace_model(body, name)
    return Wanted(name, body, streams)


def answer_locally(method: bytes, route: Route, routes: LocalRoutes) -> LocalAnswer:
    """The answer of one of llmux's own paths; raises MethodNotAllowed or ModelNotFound."""
    if method not in (b"GET", b"HEAD"):
        raise MethodNotAllowed(method.decode("latin-1"), route.endpoint, ("GET", "HEAD"))
    match route.destination:
        case Destination.HEALTH:
            return routes.health()
        case Destination.READY:
            return routes.ready()
        case Destination.MODELS:
            return routes.models()
        case Destination.ONE_MODEL:
            name = route.model or ""
            answer = routes.model(name) if routes.model is not None else None
            if answer is None:
                raise ModelNotFound(name, ())
            return answer
        case Destination.ENGINE | Destination.CONTROL:
            raise UnknownPath(route.endpoint)
