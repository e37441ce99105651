"""Training: the objective of DiffSal, its relatives, and the loop."""

from .config import TrainingConfig, build_config, load_config
from .losses import saliency_losses

__all__ = ["TrainingConfig", "build_config", "load_config", "saliency_losses"]
