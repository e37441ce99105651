"""Spatio-temporal cross-attention of the Saliency-UNet (paper section 4.2, equations 7 and 8)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class SpatioTemporalCompression(nn.Module):
    """STC(x) = LN(Conv3d(x)), equation 8: a depthwise convolution whose stride is its kernel.

    What the kernel does not divide is padded with zeros, so that every slice and every pixel counts.

    Args:
        channels: number of channels.
        kernel_size: kernel and stride over (t, h, w); the paper's is 2^i in the i-th MAM stage.
    """

    def __init__(self, channels: int, kernel_size: tuple[int, int, int]):
        super().__init__()
        self.kernel_size = kernel_size
        self.conv = nn.Conv3d(channels, channels, kernel_size, stride=kernel_size, groups=channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map `(b, c, t, h, w)` to tokens `(b, n, c)`, n = ceil(t/k) * ceil(h/k) * ceil(w/k)."""
        t, h, w = (-size % kernel for size, kernel in zip(x.shape[2:], self.kernel_size, strict=True))
        x = self.conv(F.pad(x, (0, w, 0, h, 0, t)))  # b c t/k h/k w/k
        return self.norm(rearrange(x, "b c t h w -> b (t h w) c"))


class TokenNorm(nn.LayerNorm):
    """What stands for STC in standard cross-attention: no compression, the LayerNorm alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map `(b, c, t, h, w)` to tokens `(b, t*h*w, c)`."""
        return super().forward(rearrange(x, "b c t h w -> b (t h w) c"))


class SpatioTemporalCrossAttention(nn.Module):
    """ECA(Q W_Q, STC(K) W_K, STC(V) W_V), equation 7, with Q = V = [f_v, f_s] and K = f_avs.

    All (T+1)hw tokens are queries: a token of any slice attends to every slice, the noise slice included.

    Args:
        channels: number of channels.
        num_heads: attention heads; divides `channels`.
        compression: kernel of STC over (t, h, w); `None` is the paper's standard cross-attention (SCA).
    """

    def __init__(self, channels: int, num_heads: int, compression: tuple[int, int, int] | None):
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = TokenNorm(channels)
        if compression is None:
            self.compress_k, self.compress_v = TokenNorm(channels), TokenNorm(channels)
        else:
            self.compress_k = SpatioTemporalCompression(channels, compression)
            self.compress_v = SpatioTemporalCompression(channels, compression)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """`x` = [f_v, f_s] and `key` = f_avs, both `(b, c, t, h, w)`; the attention's output, of the same shape."""
        q = self.to_q(self.norm_q(x))  # b (t h w) c
        k = self.to_k(self.compress_k(key))  # b n c
        v = self.to_v(self.compress_v(x))  # b n c
        q, k, v = (rearrange(y, "b n (heads d) -> b heads n d", heads=self.num_heads) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)  # b heads (t h w) d
        out = self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))
        t, h, w = x.shape[2:]
        return rearrange(out, "b (t h w) c -> b c t h w", t=t, h=h, w=w)


class ConvolutionalModulation(nn.Module):
    """What stands for the attention in the paper's baseline (Table 1): a 3x3 convolution of the two inputs."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_x = TokenNorm(channels)
        self.norm_key = TokenNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """`x` = [f_v, f_s] and `key` = f_avs, both `(b, c, t, h, w)`; the result, of the same shape."""
        b, _, t, h, w = x.shape
        y = F.silu(self.norm_x(x) + self.norm_key(key))  # b (t h w) c
        y = self.conv(rearrange(y, "b (t h w) c -> (b t) c h w", t=t, h=h, w=w))
        return rearrange(y, "(b t) c h w -> b c t h w", b=b)
