"""``llmux demo``: the real server over simulated engines, with clients, a live view and a summary."""
