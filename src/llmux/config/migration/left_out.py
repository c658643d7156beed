"""Keys of llama-swap that llmux has no counterpart for, each with the reason and what to do instead."""

_LIST = "llmux's model list has no such field"
_LOADING = "clients of a stream that waits get comment lines instead (wait_comments_after_seconds)"
_GROUPS = "llmux decides by memory which models are on the GPUs together"
_LOGS = "llmux logs to standard error in one format"
_HISTORY = "llmux keeps no history of requests; access_log writes one JSON line for each"
_TIMEOUTS = "llmux has no timeouts of its own for an engine's connections; request_timeout_seconds limits the wait"

OF_A_MODEL = {
    "name": _LIST,
    "description": _LIST,
    "metadata": _LIST,
    "capabilities": _LIST,
    "unlisted": "llmux lists every model",
    "sendLoadingState": _LOADING,
    "timeouts": _TIMEOUTS,
    "unloadTimeout": "llmux has one stop_timeout_seconds for all models",
    "compat": "llmux does not forward WebSockets",
}
"""Keys of a model, by name."""

_AS_THEY_ARE = "llmux passes requests on as they are"

OF_FILTERS = {
    "stripParams": f"{_AS_THEY_ARE}: the engine sees these parameters",
    "setParams": f"{_AS_THEY_ARE}. Set defaults by the engine's flags in extra_args, as --temp",
    "setParamsByID": "llmux has no presets, so clients cannot ask for these names",
}
"""Keys of a model's filters, by name."""

OF_PEER_FILTERS = {"stripParams": _AS_THEY_ARE, "setParams": _AS_THEY_ARE}
"""Keys of a peer's filters, by name."""

OF_A_PEER = {
    "timeouts": _TIMEOUTS,
    "tailcatKey": "llmux reaches other machines by HTTP only",
}
"""Keys of a peer, by name."""

OF_THE_FILE = {
    "startPort": "llmux chooses free ports; a model's key port sets one",
    "logTimeFormat": _LOGS,
    "logToStdout": _LOGS,
    "metricsMaxInMemory": _HISTORY,
    "captureBuffer": _HISTORY,
    "store": _HISTORY,
    "ui": "llmux's status page has no such setting",
    "performance": "llmux reads the GPUs only when it starts or wakes an engine",
    "sendLoadingState": _LOADING,
    "upstream": "llmux wakes a model only for the paths of inference; inference_paths adds others",
    "profiles": "llmux has no profiles; an alias is a second name for a model",
    "selectors": "llmux has no virtual models; an alias is a second name for one model",
    "tailcat": "llmux listens on host and port only",
}
"""Keys of the file, by name."""

GROUP = f"{_GROUPS}, and no group is needed for that"
GROUPS = (
    "for those who want llama-swap's rules nevertheless, these are llmux's: exclusive, at most one of them at a time "
    "though more would fit; persistent, they leave for each other only, for which their 'gpu_memory' should be known"
)
MATRIX = f"{_GROUPS}. Sets and costs of eviction are not needed; 'weight' says which model's requests count more"
SCHEDULER = "llmux's policies have no order of models; 'weight' of a model says how much its requests count"
PRELOAD = "llmux refuses models that cannot be on the GPUs together; if they can, and these are their keys:"
UNKNOWN = "llmux's converter does not know this key"
