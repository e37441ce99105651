"""Audio temporal enhancement (paper section 4.1, equations 4 and 5)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class AudioTemporalEnhancement(nn.Module):
    """A patch embedding, a learned position for each time slice (equation 4) and one transformer layer (equation 5)
    over all tokens of all slices.

    Args:
        channels: channels of the audio feature, in and out.
        time_slices: slices that the positions are learned for; for another number they are interpolated.
        num_heads: attention heads.
        head_dim: channels of one head.
        mlp_channels: hidden channels of the MLP.
    """

    def __init__(
        self, channels: int, time_slices: int, num_heads: int = 2, head_dim: int = 64, mlp_channels: int = 256
    ):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.patch_embedding = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.LayerNorm(channels)
        )
        self.temporal_position = nn.Parameter(0.02 * torch.randn(1, channels, time_slices))
        self.norm1 = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, mlp_channels), nn.GELU(), nn.Linear(mlp_channels, channels))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio feature `(b, c, t, h, w)` to the enhanced one of the same shape."""
        _, _, t, h, w = audio.shape
        position = self.temporal_position
        if position.shape[2] != t:
            position = F.interpolate(position, size=t, mode="linear")
        x = self.patch_embedding(rearrange(audio, "b c t h w -> b t (h w) c"))
        x = x + rearrange(position, "1 c t -> 1 t 1 c")  # eq. 4
        x = x.flatten(1, 2)  # b (t h w) c
        q, k, v = rearrange(
            self.to_qkv(self.norm1(x)), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.num_heads
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.to_out(rearrange(attended, "b heads n d -> b n (heads d)"))  # eq. 5, MSA
        x = x + self.mlp(self.norm2(x))  # eq. 5, MLP
        return rearrange(x, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
