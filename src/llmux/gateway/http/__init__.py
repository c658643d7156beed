"""HTTP/1.1 as bytes: heads, chunked bodies, references to an engine. Nothing here does I/O."""
