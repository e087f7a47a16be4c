"""Trains and measures the leukocyte detector."""
