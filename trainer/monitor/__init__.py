"""What the machine does beside the training: GPUs, host, and the thread that samples both."""
