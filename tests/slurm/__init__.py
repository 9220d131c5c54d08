"""A real SLURM for the tests, and the tests that need one."""
