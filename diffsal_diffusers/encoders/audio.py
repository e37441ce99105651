"""Audio encoders: log-mel slices to feature maps, each slice by itself."""

from collections.abc import Callable
from os import PathLike

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import nn

from ..errors import InputError
from .base import AudioEncoder, EncoderOutput, FeatureInfo
from .pretrained import load_weights, read_weights
from .registry import register_audio_encoder


@register_audio_encoder("vggish")
class VGGishEncoder(AudioEncoder):
    """The convolutions of VGGish (arXiv 1609.09430), the paper's audio encoder: 4.50 M parameters.

    Log-mel slices `(b, 1, t, h, w)` of sides divisible by 16 give `(b, 512, t, h/16, w/16)`: 9 slices of 112x192 give
    512x9x7x12.
    """

    feature_info = [FeatureInfo(channels=512, stride=16, time_slices=9)]

    @register_to_config
    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers += [nn.Conv2d(in_channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                in_channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, log_mel: torch.Tensor) -> EncoderOutput:
        return _encode_slices(self.features, log_mel)

    def load_pretrained(self, source: bool | str | PathLike = True) -> None:
        """Takes over the weights of the published PyTorch port of VGGish (AudioSet), from its local file."""
        if source is True:
            raise InputError(
                "the weights of VGGish are not downloaded by themselves: fetch vggish-10086976.pth, the file of its "
                'PyTorch port, and pass pretrained="path/to/vggish-10086976.pth"'
            )
        load_weights(self, read_weights(source), source=source, unused=("embeddings.",))


@register_audio_encoder("log_mel_cnn")
class LogMelCNNEncoder(AudioEncoder):
    """A light audio encoder of depthwise-separable convolutions: 0.1 M parameters by default.

    Log-mel slices `(b, 1, t, h, w)` give `(b, channels, t, h/16, w/16)`: slices of 64x64, as VGGish's, give 4x4.

    Args:
        channels: channels of the feature map, a multiple of 32.
        input_size: height and width (time frames, mel bands) that slices are resized to, multiples of 16.
    """

    @register_to_config
    def __init__(self, channels: int = 128, input_size: tuple[int, int] = (64, 64)):
        super().__init__()
        if channels < 32 or channels % 32:
            raise InputError(f"channels must be a multiple of 32, got {channels}")
        if any(side < 16 or side % 16 for side in input_size):
            raise InputError(f"input_size must be two multiples of 16, got {tuple(input_size)}")
        self.feature_info = [FeatureInfo(channels, stride=16, time_slices=9)]
        self.input_size = tuple(input_size)
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels // 4, kernel_size=3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, channels // 4),
        )
        # Convolutions see a tone alike wherever it is in the spectrum. A code for each band tells them its pitch.
        self.band_position = nn.Parameter(torch.randn(1, channels // 4, 1, self.input_size[1] // 2))
        self.layers = nn.Sequential(
            nn.SiLU(),
            SeparableConvolution(channels // 4, channels // 2, stride=2),
            SeparableConvolution(channels // 2, channels, stride=2),
            SeparableConvolution(channels, channels, stride=2),
            *(SeparableConvolution(channels, channels) for _ in range(4)),
        )

    def forward(self, log_mel: torch.Tensor) -> EncoderOutput:
        return _encode_slices(self._encode, log_mel)

    def _encode(self, log_mel: torch.Tensor) -> torch.Tensor:
        return self.layers(self.stem(log_mel) + self.band_position)  # n c h/16 w/16


class SeparableConvolution(nn.Module):
    """Depthwise 3x3 and pointwise convolution, GroupNorm after each, with a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.norm1 = nn.GroupNorm(8, in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.activation = nn.SiLU()
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.activation(self.norm1(self.depthwise(x)))  # n c h w
        h = self.activation(self.norm2(self.pointwise(h)))
        return x + h if self.shortcut else h


def _encode_slices(network: Callable[[torch.Tensor], torch.Tensor], log_mel: torch.Tensor) -> EncoderOutput:
    """Runs a 2D network of stride 16 on each log-mel slice."""
    if log_mel.shape[1] != 1 or log_mel.shape[-2] % 16 or log_mel.shape[-1] % 16:
        raise InputError(
            f"log-mel slices must have 1 channel and a height and width divisible by 16, got {tuple(log_mel.shape)}"
        )
    x = network(rearrange(log_mel, "b c t h w -> (b t) c h w"))  # (b t) c h w
    return EncoderOutput(features=[rearrange(x, "(b t) c h w -> b c t h w", b=log_mel.shape[0])])
