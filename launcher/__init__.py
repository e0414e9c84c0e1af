"""Where the processes run: plans a job, starts its workers and says how it ended. Never imports torch at start-up."""
