"""Recorded traffic: reading traces, and choosing from them."""
