"""Tuning: a frozen model learns through small additions."""
