"""What each kind of engine is, and what can be known of it without running it."""
