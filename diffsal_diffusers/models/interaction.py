"""How audio meets picture and noise before the attention: f_avs from [f_v, f_s] and the audio feature.

The paper's multi-modal interaction module (MIM, equation 9) and what its Table 3 compares it with. Every module maps
`x` = [f_v, f_s] `(b, c, t, h, w)` and the audio feature of the same shape to f_avs of the same shape.
"""

import torch
from torch import nn


class MultiModalInteraction(nn.Module):
    """f_avs = softmax(Pool([f_v, f_s] * f_a)) * f_a, equation 9: Pool over time, softmax over the positions."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        activity = (x * audio).mean(dim=2, keepdim=True)  # b c 1 h w
        # A softmax over many positions is tiny: the LayerNorm that follows in STC would lose it in its epsilon. Scaled
        # so that the largest value of each channel is one, it depends on no map's size and overflows in no dtype.
        mask = (activity - activity.amax(dim=(3, 4), keepdim=True)).exp()
        return mask * audio


class BilinearInteraction(nn.Module):
    """W (U [f_v, f_s] * f_a), a bilinear form; the convolution that made f_a is its other factor."""

    def __init__(self, channels: int):
        super().__init__()
        self.factor = nn.Conv3d(channels, channels, 1)
        self.out = nn.Conv3d(channels, channels, 1)

    def forward(self, x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.out(self.factor(x) * audio)


class AdditiveInteraction(nn.Module):
    """[f_v, f_s] + f_a."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return x + audio


class ConcatenationInteraction(nn.Module):
    """W [[f_v, f_s], f_a], concatenated over the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.out = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([x, audio], dim=1))


class NoInteraction(nn.Module):
    """f_avs = [f_v, f_s]: the sound is not used (Table 1 without MIM)."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return x


INTERACTIONS = {
    "mim": MultiModalInteraction,
    "bilinear": BilinearInteraction,
    "addition": AdditiveInteraction,
    "concatenation": ConcatenationInteraction,
    "none": NoInteraction,
}
