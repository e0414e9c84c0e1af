"""What a failure means, and which of many errors was the first."""
