"""Read a model's graph: its layers, and the factor and receptive field of each map. Nothing is changed."""
