"""Images: where they lie, how they are decoded and augmented, and in which order they are seen."""
