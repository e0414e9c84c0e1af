"""`python -m trainer.evaluate RUN`: what a run's weights are worth, after the training."""
