"""What can be known to be wrong before anything is started: the whole configuration, and the files that it names."""
