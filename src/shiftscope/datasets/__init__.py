"""Images: where they come from, how they are read, and which of them suit a model."""
