"""Where the processes run: plans a job, starts its workers, says how it ended. No torch at start-up."""
