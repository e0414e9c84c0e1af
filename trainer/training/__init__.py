"""The parts of a run put together, and what happens at its steps and between them; trainer/train.py is its page."""
