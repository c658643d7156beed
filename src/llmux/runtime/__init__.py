"""What performs the scheduler's decisions, and wires the whole together."""
