"""Virtual time: the production scheduler driven over a trace, with modelled engines."""
