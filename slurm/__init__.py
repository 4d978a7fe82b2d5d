"""Runs on a SLURM cluster: profiles, submission, what a task does, the queue, the doctor.

Nothing here knows what a run is: `benchmarks` hands over commands and names. The truth about runs
is in the run store; SLURM is only asked what waits and what works.
"""
