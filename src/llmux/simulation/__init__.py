"""Trying llmux without a GPU: simulated engines, a demo, virtual runs of the scheduler over traces, and replay."""
