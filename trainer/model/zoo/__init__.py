"""Our own networks: each file here registers its models with torchvision's registry and needs no other edit."""
