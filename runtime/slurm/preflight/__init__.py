"""The preflight: before the ranks of a job start, its nodes are checked, and those that fail are excluded.

`script` writes what the batch script does, `probe` is a task that measures, `judge` reads the reports. Front door:
`runtime.slurm.preflight.script`.
"""
