"""The address of a running llmux on the command line. Apart from its client, which a server need not import."""

import re

from llmux.host_names import DEFAULT_PORTS, host_of


def check_url(url: str) -> str:
    """The URL, unchanged. Raises ValueError if it is not of the form ``http://HOST:PORT``."""
    scheme, _, rest = url.partition("://")
    found = host_of(url)
    is_usable = scheme.lower() in DEFAULT_PORTS and found is not None and found[1] != 0
    if not is_usable or set("${}~ \\") & set(re.split("[/?#]", rest)[0]):
        raise ValueError(f"{url!r} is not of the form http://HOST:PORT")
    return url
