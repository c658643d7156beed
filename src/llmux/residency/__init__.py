"""How a model leaves the GPU and comes back: reversible steps, each written once."""
