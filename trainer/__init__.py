"""What one worker does: build the world, the data and the model, train, evaluate, and never lose work."""
