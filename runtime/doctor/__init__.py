"""What would stop a run on this machine or cluster, and what its devices and links measure.

Front door: `runtime.doctor.local.examine` for this machine, `runtime.doctor.cluster.examine` for a SLURM cluster.
"""
