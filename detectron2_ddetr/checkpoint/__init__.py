"""Checkpoint files: reading, writing, and converting those of other projects."""
