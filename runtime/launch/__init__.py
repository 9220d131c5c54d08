"""Runs as processes of this machine: what is refused before they start, their progress, and why one failed.

Front door: `runtime.launch.jobs` turns a plan into jobs, `runtime.launch.local.launch` carries them out.
"""
