"""Bilinear upsampling and the convolution after it, done in the other order: the same output for fewer operations."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class UpsampledConvolution(nn.Conv2d):
    """A bilinear upsampling by 2, then a 3x3 convolution of dilation 2 and padding 2, for a quarter of the operations.

    Both see neighbours that are two fine pixels, or one coarse pixel, apart: convolved first and upsampled then, the
    inside is the same. So is the border, where the picture goes on with its outermost pixels. The convolution's
    padding is zero instead: what its outer taps saw beyond the border, the same in both rows or columns next to it, is
    taken off again.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=2, dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, c, h, w)` to `(n, c', 2 h, 2 w)`."""
        padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
        y = _upsample(F.conv2d(padded, self.weight, self.bias), (2, 2)).contiguous(memory_format=torch.channels_last)
        # At each border: the fine pixels next to it, the tap that sees beyond it, and what that tap saw.
        borders = ((slice(0, 2), slice(0, 1)), (slice(-2, None), slice(2, 3)))
        for edge, tap in borders:
            beyond = slice(0, 1) if tap.start == 0 else slice(-1, None)
            row = F.conv2d(padded[:, :, beyond], self.weight[:, :, tap])  # n c' 1 w+2
            column = F.conv2d(padded[:, :, :, beyond], self.weight[:, :, :, tap])
            y[:, :, edge] -= _upsample(row, (1, 2))
            y[:, :, :, edge] -= _upsample(column, (2, 1))
            for other_edge, other_tap in borders:
                # What a corner's tap saw was taken off twice.
                other_beyond = slice(0, 1) if other_tap.start == 0 else slice(-1, None)
                corner = F.conv2d(padded[:, :, beyond, other_beyond], self.weight[:, :, tap, other_tap])
                y[:, :, edge, other_edge] += corner
        return y


def _upsample(x: torch.Tensor, scale: tuple[int, int]) -> torch.Tensor:
    """Bilinear upsampling of what is one pixel larger on all sides where it is upsampled, without these pixels."""
    x = F.interpolate(x, scale_factor=scale, mode="bilinear")
    rows, columns = (slice(2, -2) if s == 2 else slice(None) for s in scale)
    return x[:, :, rows, columns]


class SummedConvolution(nn.Conv2d):
    """Bilinear upsampling of feature maps of several sizes to one, their sum, and a 3x3 convolution of it.

    The convolution's nine taps are applied first, where there are fewest pixels, since all that follows is linear:
    each tap's picture is upsampled and moved by the tap's place, rows and columns one after the other, as products
    with the matrices that do both.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Maps `(b, c, h, w)` to `(b, c', height, width)`, where `size` is the height and the width."""
        taps = self.weight.permute(2, 0, 3, 1).flatten(0, 2)[:, :, None, None]  # (3 c' 3) c 1 1
        summed = self.bias.view(1, -1, 1, 1)
        for x in maps:
            rows, columns = (_upsample_and_shift(old, new, x) for old, new in zip(x.shape[2:], size, strict=True))
            y = F.conv2d(x.contiguous(), taps)
            y = rearrange(y, "b (ky c kx) h w -> b ky c h (kx w)", ky=3, kx=3) @ columns  # b ky c h width
            summed = summed + rows.T @ rearrange(y, "b ky c h width -> b c (ky h) width")
        return summed


def _upsample_and_shift(old: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """`(3 old, new)`: for each of the taps -1, 0 and 1, linear upsampling and moving against the tap."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)
    upsampling = F.pad(F.interpolate(identity[None], size=new, mode="linear")[0], (1, 1))  # old 1+new+1
    return torch.cat([upsampling[:, tap : tap + new] for tap in range(3)])
