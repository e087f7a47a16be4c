"""Trains the classifier of cells: images, folds, augmentation, the loop, what comes of it."""
