"""Training: the objective of DiffSal."""

from .objective import denoising_loss

__all__ = ["denoising_loss"]
