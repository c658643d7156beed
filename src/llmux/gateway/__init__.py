"""The data plane: one OpenAI-compatible endpoint, which uses models under leases only (``llmux.access``).

On the request path, members of an Enum are bound to module constants, all at once by unpacking the class: on Python
3.11 ``Phase.HEAD`` calls a descriptor written in Python (0.24 µs, against 0.03 µs for a module's name), and a request
needs dozens of them. From 3.12 on members are plain attributes: the constants may go when 3.11 does.
"""

from llmux.gateway.options import GatewayOptions, LocalAnswer, LocalRoutes
from llmux.gateway.server import Gateway

__all__ = ["Gateway", "GatewayOptions", "LocalAnswer", "LocalRoutes"]
