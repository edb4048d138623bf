"""Training: the loop, its checkpoints, and comparisons of trained models."""
