"""Arithmetic: from a budget and evidence to a plan. Imports specs only, and never torch."""
