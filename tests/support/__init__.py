"""What tests share: small documents, runs and corpora, processes that meet over gloo, a real SLURM."""
