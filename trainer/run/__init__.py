"""What a run leaves on disk, and whose it is. The names of its files are trainer/rundir.py's."""
