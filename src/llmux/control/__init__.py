"""The operator's HTTP interface: control API, status page and metrics, as ordinary aiohttp applications."""
