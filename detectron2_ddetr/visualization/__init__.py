"""Pictures of predictions and of trainings."""
