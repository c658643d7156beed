"""``llmux demo``: the whole of llmux at work before simulated engines, with clients, a live view and a summary."""
