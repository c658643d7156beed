"""What a run over a trace showed: figures, a table, a JSON document, pictures."""
