"""Read a model's graph: its layers, and how far apart and how large what each position of a map sees is. Nothing is changed."""
