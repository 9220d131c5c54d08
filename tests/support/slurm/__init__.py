"""A real SLURM on one machine, and a desk at it."""
