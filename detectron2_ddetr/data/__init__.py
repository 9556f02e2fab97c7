"""Data sets: checks, registration, augmentation, mapper and the training loader."""
