"""The networks: torchvision's by name, ours by file, anybody's by import path."""
