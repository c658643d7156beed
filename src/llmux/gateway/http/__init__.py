"""HTTP/1.1 as bytes: heads, chunked bodies, and the model's name in a request's body. Nothing here does I/O."""
