"""The operator: definition, PyTorch form and compiled kernels."""
