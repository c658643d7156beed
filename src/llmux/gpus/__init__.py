"""GPUs: how much memory they have, who holds it, and waiting until enough of it is free."""
