"""Images of engines' processes: what criu writes, and all that it leaves to others. Nothing here is asynchronous."""
