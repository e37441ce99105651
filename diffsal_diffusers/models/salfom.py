"""SalFoM (arXiv 2404.03097): a video foundation model and a heterogeneous decoder, the saliency map in one pass.

In shape comments: b clips, c channels, t time slices, h and w of the encoder's tokens, each of 16x16 pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import PatchEmbed3d, ShiftedWindowAttention3d

from ..encoders import create_video_encoder
from ..errors import InputError
from ..modeling import StrictModelMixin

BRANCHES = ("tcfe", "dfd", "sfd")
TOKEN_STRIDE = 16  # pixels of a frame per token


@dataclass
class SalFoMOutput(BaseOutput):
    """
    Args:
        saliency: the saliency map of each clip's last frame, `(b, 1, height, width)` in [0, 1].
    """

    saliency: torch.Tensor


class LocalityAwareStage(nn.Module):
    """A stage of TCFE: neighbouring slices are merged, and attend to each other in windows over time, at each place.

    Every second block shifts its windows by half of their length (Video Swin Transformer, arXiv 2106.13230).
    """

    def __init__(self, in_channels: int, channels: int, merged: int, depth: int, num_heads: int):
        super().__init__()
        self.patch_embed = PatchEmbed3d([merged, 1, 1], in_channels, channels)
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    channels,
                    num_heads,
                    window_size=[merged, 1, 1],
                    shift_size=[merged // 2 if i % 2 else 0, 0, 0],
                    attn_layer=ShiftedWindowAttention3d,
                )
                for i in range(depth)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, t, h, w)` to `(b, c', t / merged, h, w)`."""
        return self.blocks(self.patch_embed(x)).permute(0, 4, 1, 2, 3)


class TCFE(nn.Module):
    """The transformer branch: relations over the whole clip."""

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[int], depth: int, num_heads: int):
        super().__init__()
        merged = (strides[0], strides[1], strides[2] * strides[3])
        self.stages = nn.ModuleList(
            LocalityAwareStage(c_in, c, m, depth, num_heads)
            for c_in, c, m in zip((in_channels, *channels), channels, merged, strict=False)
        )

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Tokens `(b, c, t, h, w)` to what each stage gives: `(b, c1, t / 2, h, w)`, `(b, c3, t / 4, 4 h, 4 w)` and
        `(b, c5, 1, 16 h, 16 w)`."""
        first = self.stages[0](tokens)
        second = _upsample(self.stages[1](first), 4)
        return [first, second, _upsample(self.stages[2](second), 4)]


class DFD(nn.Module):
    """The 3D branch, dynamic feature decoding: motion, coarse to fine, while the slices become one."""

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        slices = (1, strides[0], 1, *strides[1:])
        self.convs = nn.ModuleList(
            _merging_convolution(c_in, c, s)
            for c_in, c, s in zip((in_channels, *channels), channels, slices, strict=False)
        )

    def forward(self, tokens: torch.Tensor, context: list[torch.Tensor] | None) -> list[torch.Tensor]:
        """
        Args:
            tokens: `(b, c, t, h, w)`.
            context: what TCFE's stages gave; `None` without it.

        Returns:
            `(b, c1, t / 2, h, w)` and `(b, c3, t / 4, 4 h, 4 w)`, with TCFE's added, and `(b, c5, 1, 16 h, 16 w)`.
        """
        x = F.relu(self.convs[0](tokens))
        x = F.relu(self.convs[1](x))
        first = x if context is None else x + context[0]
        x = _upsample(F.relu(self.convs[2](first)), 2)
        x = _upsample(F.relu(self.convs[3](x)), 2)
        second = x if context is None else x + context[1]
        x = _upsample(F.relu(self.convs[4](second)), 2)
        return [first, second, _upsample(F.relu(self.convs[5](x)), 2)]


class SFD(nn.Module):
    """The 2D branch, static feature decoding: the slices become one first, and space follows coarse to fine."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], strides: Sequence[int], slices: int, with_dynamics: bool
    ):
        super().__init__()
        self.time_convs = nn.ModuleList(_merging_convolution(in_channels, in_channels, s) for s in strides)
        # Some scales have two or three convolutions of the same channels.
        scales = [channels[i] for i in (0, 1, 1, 2, 3, 3, 4, 5, 5)]
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c, 3, padding=1, bias=False)
            for c_in, c in zip((in_channels, *scales), scales, strict=False)
        )
        if with_dynamics:
            left = [slices // strides[0], slices // (strides[0] * strides[1])]
            self.laterals = nn.ModuleList(_lateral(channels[i], t) for i, t in zip((1, 3), left, strict=True))

    def forward(self, tokens: torch.Tensor, dynamics: list[torch.Tensor] | None) -> torch.Tensor:
        """Tokens `(b, c, t, h, w)` and what DFD gave (`None` without it) to `(b, c5, 1, 16 h, 16 w)`."""
        x = tokens
        for conv in self.time_convs:
            x = F.relu(conv(x))
        x = x.squeeze(2)  # b c h w
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i in (4, 5, 7, 8):
                x = F.interpolate(x, scale_factor=2, mode="bilinear")
            if i in (2, 5) and dynamics is not None:
                x = x + self.laterals[i // 3](dynamics[i // 3]).squeeze(2)
        return x.unsqueeze(2)


class HeterogeneousDecoder(nn.Module):
    """From a foundation model's tokens to a saliency map, by up to three branches that see them differently.

    Args:
        in_channels: channels of a token.
        slices: time slices of the tokens: 1, 2, 4, 8 or 16.
        channels: channels of the six scales of the branches, coarsest first.
        depth, num_heads: blocks, and attention heads, of each stage of TCFE.
        branches: out of `"tcfe"`, `"dfd"` and `"sfd"`.
    """

    def __init__(
        self,
        in_channels: int,
        slices: int,
        channels: Sequence[int],
        depth: int,
        num_heads: int,
        branches: Sequence[str],
    ):
        super().__init__()
        strides = time_strides(slices)
        self.tcfe = TCFE(in_channels, channels[1::2], strides, depth, num_heads) if "tcfe" in branches else None
        self.dfd = DFD(in_channels, channels, strides) if "dfd" in branches else None
        with_dynamics = self.dfd is not None
        self.sfd = SFD(in_channels, channels, strides, slices, with_dynamics) if "sfd" in branches else None
        widths = (len(branches) * channels[-1], channels[-2], channels[-1], 1)
        self.head = nn.Sequential(*(nn.Conv2d(c_in, c, 3, padding=1, bias=False) for c_in, c in pairwise(widths)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(b, c, t, h, w)` to the map `(b, 1, 16 h, 16 w)` in [0, 1]."""
        context = None if self.tcfe is None else self.tcfe(tokens)
        dynamics = None if self.dfd is None else self.dfd(tokens, context)
        features = [] if self.sfd is None else [self.sfd(tokens, dynamics)]
        features += [branch[-1] for branch in (context, dynamics) if branch is not None]  # b c5 1 16h 16w
        first, second, last = self.head
        x = torch.cat(features, dim=1).squeeze(2)
        return last(F.relu(second(F.relu(first(x))))).sigmoid()


def time_strides(slices: int) -> tuple[int, int, int, int]:
    """How many slices become one, four times, until one is left; 2, 2, 2 and 2 for 16.

    Raises:
        InputError: they cannot be halved so.
    """
    if slices not in (1, 2, 4, 8, 16):
        raise InputError(
            f"the decoder halves 1, 2, 4, 8 or 16 time slices until one is left, and the encoder gives {slices}"
        )
    halvings = slices.bit_length() - 1
    return tuple(2 if i < halvings else 1 for i in range(4))


def _merging_convolution(in_channels: int, out_channels: int, merged: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (merged, 3, 3), stride=(merged, 1, 1), padding=(0, 1, 1), bias=False)


def _lateral(channels: int, slices: int) -> nn.Sequential:
    layers = []
    for _ in range(math.ceil(math.log2(slices))):
        layers += [nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)), nn.ReLU()]
    return nn.Sequential(*layers)


def _upsample(x: torch.Tensor, scale: int) -> torch.Tensor:
    """`(b, c, t, h, w)`, finer in space."""
    return F.interpolate(x, scale_factor=(1, scale, scale), mode="trilinear")


class SalFoM(StrictModelMixin, ConfigMixin):
    """SalFoM: a video foundation model's tokens, decoded by three branches into the saliency map of the last frame.

    The defaults are the paper's network: 402.52 M parameters, which the release calls 402.95 M with 14 tensors of
    0.43 M numbers that it has no use for.

    Args:
        encoder: a registered video encoder with a feature of stride 16, see
            [`~diffsal_diffusers.encoders.list_video_encoders`].
        encoder_config: further settings of the encoder.
        num_frames: frames of a clip; 16, or for the ablation 8.
        decoder_channels: channels of the six scales of the decoder, coarsest first.
        depth: blocks of each of TCFE's three stages.
        num_attention_heads: of these blocks; must divide the decoder's second, fourth and sixth channels.
        branches: the decoder's branches, out of `"tcfe"` (transformer), `"dfd"` (3D) and `"sfd"` (2D).

    Raises:
        InputError: there is no such encoder or branch, or they do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        encoder: str = "umt_l16",
        encoder_config: dict[str, Any] | None = None,
        num_frames: int = 16,
        decoder_channels: tuple[int, ...] = (512, 256, 128, 64, 32, 16),
        depth: int = 6,
        num_attention_heads: int = 8,
        branches: tuple[str, ...] = BRANCHES,
    ):
        super().__init__()
        if not branches or len(set(branches)) < len(branches) or not set(branches) <= set(BRANCHES):
            raise InputError(f"`branches` must be some of {', '.join(BRANCHES)}, each once, got {tuple(branches)}")
        if len(decoder_channels) != 6 or any(c < 1 for c in decoder_channels):
            raise InputError(f"`decoder_channels` must be six positive numbers, got {tuple(decoder_channels)}")
        if "tcfe" in branches and any(c % num_attention_heads for c in decoder_channels[1::2]):
            raise InputError(
                f"`num_attention_heads` = {num_attention_heads} must divide the second, fourth and sixth of "
                f"`decoder_channels`, {tuple(decoder_channels)}"
            )
        self.video_encoder = create_video_encoder(encoder, num_frames=num_frames, **(encoder_config or {}))
        strides = [info.stride for info in self.video_encoder.feature_info]
        if TOKEN_STRIDE not in strides:
            raise InputError(f"SalFoM takes a video feature at stride {TOKEN_STRIDE}; {encoder!r} has {strides}")
        self.scale = strides.index(TOKEN_STRIDE)
        info = self.video_encoder.feature_info[self.scale]
        self.decoder = HeterogeneousDecoder(
            info.channels, info.time_slices, decoder_channels, depth, num_attention_heads, branches
        )

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Callable | None = None):
        # Encoders each have their own way; the decoder has little to save.
        if enable:
            self.video_encoder.enable_gradient_checkpointing(gradient_checkpointing_func)
        else:
            self.video_encoder.disable_gradient_checkpointing()

    def forward(self, video: torch.Tensor, return_dict: bool = True) -> SalFoMOutput | tuple[torch.Tensor]:
        """
        Args:
            video: clips `(b, 3, num_frames, height, width)`, normalised as the encoder asks for; height and width
                divisible by 32.
            return_dict: whether to return a [`SalFoMOutput`] instead of a tuple.

        Returns:
            the saliency map of the last frame, `(b, 1, height, width)` in [0, 1].

        Raises:
            InputError: a size does not fit.
        """
        if video.ndim != 5 or video.shape[2] != self.config.num_frames:
            raise InputError(
                f"`video` must be (b, 3, {self.config.num_frames}, height, width), got {tuple(video.shape)}"
            )
        saliency = self.decoder(self.video_encoder(video).features[self.scale])
        return SalFoMOutput(saliency=saliency) if return_dict else (saliency,)
