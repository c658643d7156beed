"""Rules of two kinds of engines that differ in everything that rules can say."""

from llmux.engines.paths import COMMON_ENDPOINTS, Endpoint, RequestRules
from llmux.gateway.engine_paths import EngineRules

COMMON = EngineRules("usual", RequestRules())
OWN = EngineRules(
    "own",
    RequestRules(
        endpoints={
            "/v1/completions": COMMON_ENDPOINTS["/v1/completions"],
            "/v1/images/edits": Endpoint("/v1/images/edits"),
            "/embeddings": Endpoint("/embeddings"),
            "/infill": Endpoint("/infill"),
            "/state": Endpoint("/state", ("GET", "HEAD"), model_in_body=False, may_wake=False),
        },
        removed_headers=frozenset(("x-conversation-id",)),
        removed_fields=frozenset(("id_slot", "keep_alive")),
    ),
)
UNKNOWN = EngineRules("unknown", RequestRules(endpoints={}))
ENGINES = {"m": COMMON, "cold": COMMON, "o": OWN, "cold-o": OWN}
