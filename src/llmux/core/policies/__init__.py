"""Switch policies: when to switch, and to which model."""
