"""Jobs in Slurm's queue: what is asked of it, and what runs in the allocation."""
