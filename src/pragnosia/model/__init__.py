"""The cortex: needs torch and transformers, nothing of the house above it."""
