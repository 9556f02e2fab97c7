"""Training: the trainer, its steps, its optimiser and what stops it."""
