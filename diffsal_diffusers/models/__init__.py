"""The networks."""

from .released import ReleasedConditions, ReleasedSaliencyUNet
from .salfom import SALFOM_CONFIGS, SalFoM, SalFoMOutput
from .saliency_unet import SaliencyConditions, SaliencyUNet, SaliencyUNetOutput

__all__ = [
    "SALFOM_CONFIGS",
    "ReleasedConditions",
    "ReleasedSaliencyUNet",
    "SalFoM",
    "SalFoMOutput",
    "SaliencyConditions",
    "SaliencyUNet",
    "SaliencyUNetOutput",
]
