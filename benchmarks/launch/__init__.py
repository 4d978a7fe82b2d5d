"""Who runs what, and where: workers, this machine, SLURM, cost."""
