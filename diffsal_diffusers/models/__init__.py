"""The networks."""

from .saliency_unet import SaliencyConditions, SaliencyUNet, SaliencyUNetOutput

__all__ = ["SaliencyConditions", "SaliencyUNet", "SaliencyUNetOutput"]
