"""The data plane: one OpenAI-compatible endpoint; sees models only through leases."""

from llmux.gateway.options import GatewayOptions, LocalAnswer, LocalRoutes
from llmux.gateway.server import Gateway

__all__ = ["Gateway", "GatewayOptions", "LocalAnswer", "LocalRoutes"]
