"""Measure, explain and fix how a vision model responds to shifted images."""
