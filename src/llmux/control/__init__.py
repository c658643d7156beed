"""The operator's HTTP side: control API, status page, metrics; an ordinary aiohttp application."""
