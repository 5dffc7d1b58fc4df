"""Experiments: networks trained, measured and compared with what a source printed."""
