"""The machine that engines run on."""
