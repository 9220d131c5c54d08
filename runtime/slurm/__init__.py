"""Runs and studies as SLURM jobs: sbatch scripts, submission, requeueing, job states, and a study that continues
itself.

sbatch is called through submitit in `runtime.slurm.submit`; a job's script comes from `runtime.slurm.sbatch_script`,
and `runtime.slurm.requeue` decides what follows it. Front door: `runtime.slurm.commands`.
"""
