"""Approximations: transforms from a model's tensors to cheaper tensors."""
