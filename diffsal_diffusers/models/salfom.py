"""SalFoM (arXiv 2404.03097): a video foundation model and a heterogeneous decoder, the saliency map in one pass.

In shape comments: b clips, c channels, t time slices, h and w of the encoder's tokens, each of 16x16 pixels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import nn

from ..encoders import create_video_encoder
from ..errors import InputError, check_positive_integer
from ..modeling import StrictModelMixin

BRANCHES = ("tcfe", "dfd", "sfd")
# Settings of SalFoM by name: the paper's, and small ones to try things with.
SALFOM_CONFIGS: dict[str, dict[str, Any]] = {
    "base": {"encoder": "umt_l16", "num_frames": 16},
    "small": {
        "encoder": "umt_b16",
        "encoder_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "num_frames": 16,
        "decoder_channels": (16, 8, 8, 8, 8, 4),
        "depth": 2,
        "num_attention_heads": 2,
    },
}
TOKEN_STRIDE = 16  # pixels of a frame per token


@dataclass
class SalFoMOutput(BaseOutput):
    """
    Args:
        saliency: the saliency map of each clip's last frame, `(b, 1, height, width)` in [0, 1].
    """

    saliency: torch.Tensor


class WindowedTimeAttention(nn.Module):
    """Attention among neighbouring slices at each place, in windows that may be shifted, with a bias for the distance
    in time (Video Swin Transformer, arXiv 2106.13230, section 3.2)."""

    def __init__(self, channels: int, num_heads: int, window: int, shift: int):
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn(2 * window - 1, num_heads))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, t, h, w, c)` to the same."""
        b, slices, h, w, _ = x.shape
        window, shift = (self.window, self.shift) if slices > self.window else (slices, 0)
        place = torch.arange(window, device=x.device)
        distance = place[:, None] - place
        bias = self.relative_position_bias_table[distance + self.window - 1].permute(2, 0, 1)  # heads t t
        bias = bias.repeat(slices // window, 1, 1, 1)  # n heads t t
        if shift > 0:
            # In the shifted order the last window holds the clip's last slices and its first, which are no neighbours.
            wrapped = place >= window - shift
            bias[-1] = bias[-1].masked_fill(wrapped[:, None] != wrapped, -math.inf)
            x = x.roll(-shift, dims=1)
        q, k, v = rearrange(
            self.qkv(x), "b (n t) h w (qkv heads d) -> qkv (b h w) n heads t d", t=window, qkv=3, heads=self.num_heads
        )
        x = F.scaled_dot_product_attention(q, k, v, bias)
        x = self.proj(rearrange(x, "(b h w) n heads t d -> b (n t) h w (heads d)", b=b, h=h, w=w))
        return x.roll(shift, dims=1) if shift > 0 else x


class LocalityAwareBlock(nn.Module):
    """A transformer block of TCFE, on `(b, t, h, w, c)`."""

    def __init__(self, channels: int, num_heads: int, window: int, shift: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowedTimeAttention(channels, num_heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LocalityAwareStage(nn.Module):
    """A stage of TCFE: neighbouring slices become one, and attend to those around; every second block shifts its
    windows by half of their length."""

    def __init__(self, in_channels: int, channels: int, merged: int, depth: int, num_heads: int):
        super().__init__()
        self.patch_embed = nn.Conv3d(in_channels, channels, (merged, 1, 1), stride=(merged, 1, 1))
        self.blocks = nn.Sequential(
            *(LocalityAwareBlock(channels, num_heads, merged, merged // 2 if i % 2 else 0) for i in range(depth))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, t, h, w)` to `(b, c', t / merged, h, w)`."""
        x = self.patch_embed(x).permute(0, 2, 3, 4, 1)  # b t h w c
        return self.blocks(x).permute(0, 4, 1, 2, 3)


class TCFE(nn.Module):
    """The transformer branch: relations over the whole clip.

    Args:
        in_channels: channels of a token.
        channels: channels of the three stages.
        strides: how many slices become one, four times; the last stage does the work of two.
        depth, num_heads: blocks of a stage, and their attention heads.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[int], depth: int, num_heads: int):
        super().__init__()
        merged = (strides[0], strides[1], strides[2] * strides[3])
        self.stages = nn.ModuleList(
            LocalityAwareStage(c_in, c, m, depth, num_heads)
            for c_in, c, m in zip((in_channels, *channels[:-1]), channels, merged, strict=True)
        )

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Tokens `(b, c, t, h, w)` to what each stage gives: `(b, c1, t / 2, h, w)`, `(b, c3, t / 4, 4 h, 4 w)` and
        `(b, c5, 1, 16 h, 16 w)`."""
        first = self.stages[0](tokens)
        second = _upsample(self.stages[1](first), 4)
        return [first, second, _upsample(self.stages[2](second), 4)]


class DFD(nn.Module):
    """The 3D branch, dynamic feature decoding: motion, coarse to fine, while the slices become one.

    Args:
        in_channels: channels of a token.
        channels: channels c0 to c5 of the six convolutions.
        strides: how many slices become one, four times.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        merged = (1, strides[0], 1, *strides[1:])
        self.convs = nn.ModuleList(
            _merging_convolution(c_in, c, m)
            for c_in, c, m in zip((in_channels, *channels[:-1]), channels, merged, strict=True)
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
    """The 2D branch, static feature decoding: the slices become one first, and space follows coarse to fine.

    Args:
        in_channels: channels of a token.
        channels: c0 to c5, as DFD's.
        strides: how many slices become one, four times.
        lateral_slices: slices of DFD's first and second feature; `None` without DFD.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        lateral_slices: tuple[int, int] | None,
    ):
        super().__init__()
        self.time_convs = _with_relu(_merging_convolution(in_channels, in_channels, m) for m in strides)
        c0, c1, c2, c3, c4, c5 = channels
        self.scales = nn.ModuleList(
            _with_relu(nn.Conv2d(c_in, c, 3, padding=1, bias=False) for c_in, c in pairwise(widths))
            for widths in ((in_channels, c0, c1, c1), (c1, c2, c3), (c3, c3), (c3, c4, c5), (c5, c5))
        )
        if lateral_slices is not None:
            # Each halves the slices of a feature of DFD until one is left.
            self.laterals = nn.ModuleList(
                _with_relu(
                    nn.Conv3d(c, c, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)) for _ in range(_halvings(slices))
                )
                for c, slices in zip((c1, c3), lateral_slices, strict=True)
            )

    def forward(self, tokens: torch.Tensor, dynamics: list[torch.Tensor] | None) -> torch.Tensor:
        """Tokens `(b, c, t, h, w)` and what DFD gave (`None` without it) to `(b, c5, 1, 16 h, 16 w)`."""
        x = self.scales[0](self.time_convs(tokens).squeeze(2))  # b c1 h w
        if dynamics is not None:
            x = x + self.laterals[0](dynamics[0]).squeeze(2)
        for scale in self.scales[1:3]:
            x = F.interpolate(scale(x), scale_factor=2, mode="bilinear")  # b c3 4h 4w in the end
        if dynamics is not None:
            x = x + self.laterals[1](dynamics[1]).squeeze(2)
        for scale in self.scales[3:]:
            x = F.interpolate(scale(x), scale_factor=2, mode="bilinear")  # b c5 16h 16w in the end
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
        if slices not in (1, 2, 4, 8, 16):
            raise InputError(
                f"the decoder halves 1, 2, 4, 8 or 16 time slices until one is left, and the encoder gives {slices}"
            )
        strides = tuple(2 if i < _halvings(slices) else 1 for i in range(4))
        first, second = slices // strides[0], slices // (strides[0] * strides[1])  # slices of DFD's features
        self.tcfe = TCFE(in_channels, channels[1::2], strides, depth, num_heads) if "tcfe" in branches else None
        self.dfd = DFD(in_channels, channels, strides) if "dfd" in branches else None
        self.sfd = None
        if "sfd" in branches:
            self.sfd = SFD(in_channels, channels, strides, (first, second) if "dfd" in branches else None)
        *_, c4, c5 = channels
        self.head = nn.Sequential(
            nn.Conv2d(len(branches) * c5, c4, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c5, 1, 3, padding=1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(b, c, t, h, w)` to the map `(b, 1, 16 h, 16 w)` in [0, 1]."""
        context = None if self.tcfe is None else self.tcfe(tokens)
        dynamics = None if self.dfd is None else self.dfd(tokens, context)
        features = [] if self.sfd is None else [self.sfd(tokens, dynamics)]
        features += [branch[-1] for branch in (context, dynamics) if branch is not None]  # b c5 1 16h 16w
        return self.head(torch.cat(features, dim=1).squeeze(2))


def _halvings(slices: int) -> int:
    return slices.bit_length() - 1  # of a power of two


def _merging_convolution(in_channels: int, out_channels: int, merged: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (merged, 3, 3), stride=(merged, 1, 1), padding=(0, 1, 1), bias=False)


def _with_relu(convs: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))


def _upsample(x: torch.Tensor, scale: int) -> torch.Tensor:
    """`(b, c, t, h, w)`, finer in space."""
    return F.interpolate(x, scale_factor=(1, scale, scale), mode="trilinear")


class SalFoM(StrictModelMixin, ConfigMixin):
    """SalFoM: a video foundation model's tokens, decoded by three branches into the saliency map of the last frame.

    The defaults are the paper's network, `"base"` of `SALFOM_CONFIGS`: 402.52 M parameters. The release has 402.95 M,
    with 14 tensors that nothing reads and 18 tables of indices.

    Args:
        encoder: a registered video encoder with a feature of stride 16, see
            [`~diffsal_diffusers.encoders.list_video_encoders`].
        encoder_config: further settings of the encoder.
        num_frames: frames of a clip: 16, or for the ablation 8; `None` takes what the encoder was made for, or 16.
        decoder_channels: channels of the six scales of the decoder, coarsest first.
        depth: blocks of each of TCFE's three stages.
        num_attention_heads: of these blocks; must divide the second, fourth and sixth channels.
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
        num_frames: int | None = None,
        decoder_channels: tuple[int, ...] = (512, 256, 128, 64, 32, 16),
        depth: int = 6,
        num_attention_heads: int = 8,
        branches: tuple[str, ...] = BRANCHES,
    ):
        super().__init__()
        encoder_config = {} if encoder_config is None else dict(encoder_config)
        _check_config(encoder, encoder_config, num_frames, decoder_channels, depth, num_attention_heads, branches)
        if num_frames is not None:
            encoder_config["num_frames"] = num_frames
        self.video_encoder = create_video_encoder(encoder, **encoder_config)
        self.num_frames = self.video_encoder.config.get("num_frames", 16) if num_frames is None else num_frames
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
        if video.ndim != 5 or video.shape[2] != self.num_frames:
            raise InputError(f"`video` must be (b, 3, {self.num_frames}, height, width), got {tuple(video.shape)}")
        saliency = self.decoder(self.video_encoder(video).features[self.scale])
        return SalFoMOutput(saliency=saliency) if return_dict else (saliency,)


def _check_config(
    encoder: str,
    encoder_config: dict[str, Any],
    num_frames: int | None,
    decoder_channels: Sequence[int],
    depth: int,
    num_attention_heads: int,
    branches: Sequence[str],
) -> None:
    if not isinstance(encoder, str):
        raise InputError(f"`encoder` must be the name of a registered encoder, got {type(encoder).__name__}")
    for key, remedy in (("num_frames", "pass it to SalFoM itself"), ("pretrained", "pass it to `from_encoder`")):
        if key in encoder_config:
            raise InputError(f"`encoder_config` must not have {key!r}: {remedy}")
    known = isinstance(branches, (list, tuple)) and all(branch in BRANCHES for branch in branches)
    if not known or not branches or len(set(branches)) < len(branches):
        raise InputError(f"`branches` must be a list of some of {', '.join(BRANCHES)}, each once, got {branches!r}")
    if not isinstance(decoder_channels, Sequence) or len(decoder_channels) != 6:
        raise InputError(f"`decoder_channels` must be six numbers, got {decoder_channels!r}")
    numbers = {f"decoder_channels[{i}]": channels for i, channels in enumerate(decoder_channels)}
    numbers |= {"depth": depth, "num_attention_heads": num_attention_heads}
    for name, value in (numbers | ({} if num_frames is None else {"num_frames": num_frames})).items():
        check_positive_integer(name, value)
    if "tcfe" in branches and any(c % num_attention_heads for c in decoder_channels[1::2]):
        raise InputError(
            f"`num_attention_heads` = {num_attention_heads} must divide the second, fourth and sixth of "
            f"`decoder_channels`, {tuple(decoder_channels)}"
        )
