"""Our own networks: a file here registers its models with torchvision's registry, and that is all."""
