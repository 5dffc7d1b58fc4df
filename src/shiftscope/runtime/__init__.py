"""Running things: settings, seeds, files, processes. It knows no study."""
