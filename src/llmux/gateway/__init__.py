"""The data plane: one OpenAI-compatible endpoint, which uses models under leases only (``llmux.access``).

On the request path, members of an Enum are bound to module constants, which are Final: ``Phase.HEAD`` is a look-up in
the class, and on the first Pythons 3.11 a call of a descriptor written in Python (0.24 µs, against 0.03 µs for a
module's name). Where it is compiled, any module's name that is not Final is looked up, too, at 120 instructions; a
request needs dozens of them.
"""

from llmux.gateway.options import GatewayOptions, LocalAnswer, LocalRoutes
from llmux.gateway.server import Gateway

__all__ = ["Gateway", "GatewayOptions", "LocalAnswer", "LocalRoutes"]
