"""Backbones, registered for YAML and built from keyword arguments."""
