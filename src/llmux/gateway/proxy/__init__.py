"""The relay between clients and engines: connections on both sides, and the exchange that joins two of them."""
