"""Packed models: every unit one record on disk, every matrix in a row format; written as a stream."""
