"""Detections for other libraries, which are no requirements: import the module of one to use it."""
