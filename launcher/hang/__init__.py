"""Who hangs, and at what: found out from outside the workers, while they hang."""
