"""Screens the leukocytes of a scanned blood smear."""
