"""A model's graph, read and never changed."""
