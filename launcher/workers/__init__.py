"""One machine's workers, from torchrun's engine to the first line of the user's program."""
