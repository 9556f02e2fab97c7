"""Trained models in files for other programs, each compared with its model."""

from .exporting import export_model
from .runner import load_predictor

__all__ = ["export_model", "load_predictor"]
