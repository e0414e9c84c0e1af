"""What came of a job: its evidence gathered, whether it starts again, and what is told and kept of its end."""
