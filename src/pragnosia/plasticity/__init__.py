"""Rules that change a model's structure between steps: growth, pruning."""
