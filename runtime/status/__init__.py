"""How runs and studies stand: collected from run folders and SLURM, displayed, logs followed, jobs cancelled.

Front door: `runtime.status.collect`.
"""
