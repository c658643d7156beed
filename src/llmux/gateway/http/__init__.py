"""HTTP/1.1 as bytes: heads, chunked bodies, hosts and origins. Nothing here does I/O."""
