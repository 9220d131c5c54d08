"""Benchmarks against peers and limits: commands that print figures beside their references, never
assertions."""
