"""What the pipelines return."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class SaliencyPipelineOutput(BaseOutput):
    """
    Args:
        saliency: one map a frame, in [0, 1]: `(frames, height, width)` float32 as an array or a tensor, or a list of
            16-bit grey PIL images.
        uncertainty: the spread (standard deviation) of the ensemble at each pixel, of the same form; `None` unless
            asked for.
        times: presentation times of the frames in seconds, `(frames,)`.
    """

    saliency: np.ndarray | torch.Tensor | list[Image.Image]
    uncertainty: np.ndarray | torch.Tensor | list[Image.Image] | None
    times: np.ndarray
