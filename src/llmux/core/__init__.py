"""The pure core: what should happen, decided from events and a time that is passed in.

Standard library only; no clock, no I/O, no logging, no randomness, nothing asynchronous.
"""
