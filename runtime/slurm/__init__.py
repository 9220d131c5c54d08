"""Runs as SLURM jobs: what is queued, what a task does, what follows it, and how a study goes on from job to job."""
