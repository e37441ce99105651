"""The networks."""

from .released import ReleasedConditions, ReleasedSaliencyUNet
from .saliency_unet import SaliencyConditions, SaliencyUNet, SaliencyUNetOutput

__all__ = ["ReleasedConditions", "ReleasedSaliencyUNet", "SaliencyConditions", "SaliencyUNet", "SaliencyUNetOutput"]
