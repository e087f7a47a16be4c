"""Training: data, augmentation, the loops."""
