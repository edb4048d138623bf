"""Tuning: low-rank adapters on a frozen model, their files, and how they are folded in."""
