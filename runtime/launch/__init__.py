"""Runs as processes of this machine: checks before they start, their progress, and why one failed.

Front door: `runtime.launch.jobs` turns a plan into jobs, `runtime.launch.local.launch` runs them.
"""
