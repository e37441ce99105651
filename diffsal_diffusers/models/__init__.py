"""The networks."""

from .released import ReleasedConditions, ReleasedSaliencyUNet
from .salfom import SalFoM, SalFoMOutput
from .saliency_unet import SaliencyConditions, SaliencyUNet, SaliencyUNetOutput

__all__ = [
    "ReleasedConditions",
    "ReleasedSaliencyUNet",
    "SalFoM",
    "SalFoMOutput",
    "SaliencyConditions",
    "SaliencyUNet",
    "SaliencyUNetOutput",
]
