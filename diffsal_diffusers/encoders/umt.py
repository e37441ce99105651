"""The video encoder of UnMasked Teacher, on transformers' VideoMAE classes."""

from os import PathLike

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import nn
from transformers import VideoMAEConfig
from transformers.models.videomae.modeling_videomae import VideoMAEEncoder

from ..errors import InputError
from ..modeling import STRIDES
from .base import EncoderOutput, FeatureInfo, VideoEncoder
from .pretrained import load_weights, read_weights
from .registry import register_video_encoder
from .video import check_frames

PATCH_SIZE = 16
TABLE_GRID = (8, 14, 14)  # time slices, rows and columns of tokens that the published positions are made for
PYRAMID_CHANNELS = (96, 192, 384, 768)
HOW_TO_CONVERT = (
    "of UMT's published Kinetics checkpoint `diffsal convert umt CHECKPOINT FOLDER` makes the folder to give"
)
Size = tuple[int, int, int]


@register_video_encoder("umt_l16")
@register_video_encoder("umt_l16_pyramid", pyramid_channels=PYRAMID_CHANNELS)
@register_video_encoder("umt_b16", hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
@register_video_encoder(
    "umt_b16_pyramid", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, pyramid_channels=PYRAMID_CHANNELS
)
class UMTEncoder(VideoEncoder):
    """The vision transformer of UnMasked Teacher (arXiv 2303.16058), a video foundation model: 306.3 M parameters
    (ViT-L/16) or 88.0 M (ViT-B/16).

    Every patch of 16x16 pixels of every frame is a token, and all attend to each other. The features are the tokens
    after the last block, without a norm: of a 16x224x224 clip 1024x16x14x14 (ViT-B/16: 768x16x14x14). The positions,
    stored for 14x14 tokens a frame, are interpolated to the clip at hand.

    The Saliency-UNet takes four scales: with `pyramid_channels` a convolution each makes them of the one, as in the
    simple feature pyramid of arXiv 2203.16527, after neighbouring slices are averaged to half as many.

    Args:
        hidden_size: channels of a token.
        num_hidden_layers, num_attention_heads: of the transformer.
        num_frames: frames of a clip; `forward` takes clips of other lengths, too.
        pyramid_channels: channels at strides 4, 8, 16 and 32; `None` for the tokens alone, of stride 16.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_frames: int = 16,
        pyramid_channels: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if num_frames < 1:
            raise InputError(f"`num_frames` must be at least 1, got {num_frames}")
        if pyramid_channels is not None and (len(pyramid_channels) != len(STRIDES) or min(pyramid_channels) < 1):
            raise InputError(
                f"`pyramid_channels` must be four positive numbers or None, got {tuple(pyramid_channels)}"
            )
        if hidden_size < 1 or num_attention_heads < 1 or hidden_size % 2 or hidden_size % num_attention_heads:
            raise InputError(
                f"`hidden_size` must be even and a multiple of `num_attention_heads`, got {hidden_size} and "
                f"{num_attention_heads}"
            )
        self.patch_embed = nn.Conv3d(3, hidden_size, (1, PATCH_SIZE, PATCH_SIZE), stride=(1, PATCH_SIZE, PATCH_SIZE))
        positions = resize_positions(sine_cosine_positions(hidden_size), (num_frames, *TABLE_GRID[1:]))
        self.pos_embed = nn.Parameter(positions)  # t h w c
        self.encoder = VideoMAEEncoder(
            VideoMAEConfig(
                hidden_size=hidden_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                intermediate_size=4 * hidden_size,
                layer_norm_eps=1e-6,
                qkv_bias=True,  # of queries and values; keys have none
                attn_implementation="sdpa",
            )
        )
        self.pyramid = None if pyramid_channels is None else FeaturePyramid(hidden_size, pyramid_channels)
        if pyramid_channels is None:
            self.feature_info = [FeatureInfo(hidden_size, PATCH_SIZE, num_frames)]
        else:
            self.feature_info = [
                FeatureInfo(channels, stride, -(-num_frames // 2))
                for channels, stride in zip(pyramid_channels, STRIDES, strict=True)
            ]

    def forward(self, video: torch.Tensor) -> EncoderOutput:
        check_frames(video)
        x = self.patch_embed(video)  # b c t h w
        size = tuple(x.shape[2:])
        x = rearrange(x, "b c t h w -> b (t h w) c") + resize_positions(self.pos_embed, size).flatten(0, 2)
        x = self.encoder(x).last_hidden_state
        x = rearrange(x, "b (t h w) c -> b c t h w", t=size[0], h=size[1], w=size[2])
        return EncoderOutput(features=[x] if self.pyramid is None else self.pyramid(x))

    def load_pretrained(self, source: bool | str | PathLike = True) -> None:
        if source is True:
            raise InputError(f"the weights of UMT have no download here; {HOW_TO_CONVERT}")
        try:
            weights = read_weights(source)
        except InputError as error:
            raise InputError(f"{error}; {HOW_TO_CONVERT}") from error
        positions = weights.get("pos_embed")
        if positions is not None and positions.ndim == 4 and positions.shape[1:] == self.pos_embed.shape[1:]:
            weights["pos_embed"] = resize_positions(positions, tuple(self.pos_embed.shape[:3]))
        if "patch_embed.proj.weight" in weights:
            raise InputError(f"{source}: these are published names; {HOW_TO_CONVERT}")
        load_weights(self, weights, source, own=("pyramid.",), unused=("pyramid.",) if self.pyramid is None else ())


class FeaturePyramid(nn.Module):
    """Features at strides 4, 8, 16 and 32 of tokens at stride 16, each through a LayerNorm of its own."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]):
        super().__init__()
        finest, fine, same, coarse = channels
        self.convs = nn.ModuleList(
            [
                nn.ConvTranspose3d(in_channels, finest, (1, 4, 4), stride=(1, 4, 4)),
                nn.ConvTranspose3d(in_channels, fine, (1, 2, 2), stride=(1, 2, 2)),
                nn.Conv3d(in_channels, same, 1),
                nn.Conv3d(in_channels, coarse, (1, 2, 2), stride=(1, 2, 2)),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """`(b, c, t, h, w)` to one `(b, c', ceil(t / 2), h', w')` a scale, finest first."""
        tokens = F.avg_pool3d(tokens, (2, 1, 1), ceil_mode=True)
        features = (conv(tokens) for conv in self.convs)
        return [
            norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3) for norm, x in zip(self.norms, features, strict=True)
        ]


def sine_cosine_positions(channels: int) -> torch.Tensor:
    """Sines and cosines of the number of a token, in turn (arXiv 1706.03762, section 3.5), `(t, h, w, channels)` of
    `TABLE_GRID`: tokens are counted through all slices."""
    number = torch.arange(TABLE_GRID[0] * TABLE_GRID[1] * TABLE_GRID[2], dtype=torch.float64)
    frequency = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angle = number[:, None] * frequency  # n channels/2
    table = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()  # n channels
    return table.unflatten(0, TABLE_GRID)


def resize_positions(table: torch.Tensor, size: Size) -> torch.Tensor:
    """Positions `(t, h, w, c)` of another grid of tokens: linear in time, bicubic in space."""
    slices, *grid = size
    if list(table.shape[1:3]) != grid:
        table = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic").permute(0, 2, 3, 1)
    if len(table) != slices:
        flat = rearrange(table, "t h w c -> (h w) c t")
        flat = F.interpolate(flat, size=slices, mode="linear")
        table = rearrange(flat, "(h w) c t -> t h w c", h=grid[0])
    return table.contiguous()
