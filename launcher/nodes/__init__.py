"""The agents of several nodes: how they meet, and what they tell each other."""
