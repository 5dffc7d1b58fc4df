"""Experiments: data, networks, training and studies. Nothing outside it, the command line apart, imports it."""
