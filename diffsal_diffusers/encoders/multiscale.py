"""torchvision's blocks of MViT, with the same weights and the same output, computed in less time where no gradient is
wanted.

Attention is fused, over some of the queries at a time: the scores of all, 29 million numbers in the first block of
MViTv2-S, are never there together. And the pooling convolutions see tokens as they lie in memory.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleAttention, MultiscaleBlock, Pool

Size = tuple[int, int, int]  # time slices, rows and columns of tokens
SCORES_AT_ONCE = 2**21  # 8 MB, which stay in the processor's cache


class FusedAttention(MultiscaleAttention):
    """Pooled attention with decomposed relative positions (arXiv 2112.01526, equation 4)."""

    def forward(self, x: torch.Tensor, thw: Size) -> tuple[torch.Tensor, Size]:
        """Tokens `(b, 1 + t h w, c)`, the class token first, and t, h and w; of what comes out, too."""
        if torch.is_grad_enabled():  # there is no fused attention with a gradient for the relative positions
            return super().forward(x, thw)
        parts = zip((self.pool_q, self.pool_k, self.pool_v), self.qkv(x).chunk(3, dim=2), strict=True)
        (q, q_size), (k, k_size), (v, _) = [self._pooled(pool, tokens, thw) for pool, tokens in parts]

        # The scores of relative positions depend on the query and on the slice, the row or the column of the key.
        inside = q[:, :, 1:].unflatten(2, q_size)  # b heads t h w d
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        scores = []
        for axis, table, queries, keys in zip("trc", tables, q_size, k_size, strict=True):
            by_axis = torch.einsum(f"bntrcd,{axis}kd->bntrck", inside, _relative(table, queries, keys)).flatten(2, 4)
            scores.append(F.pad(by_axis, (0, 0, 1, 0)))  # b heads 1+n keys; the class token has no position
        in_time, in_rows, in_columns = scores
        in_places = in_time.unsqueeze(-1) + in_rows.unsqueeze(-2)  # b heads 1+n t' h'

        at_once = max(1, SCORES_AT_ONCE // (k.shape[:3].numel()))
        outs = []
        for begin in range(0, q.shape[2], at_once):
            part = slice(begin, begin + at_once)
            bias = k.new_zeros(*q[:, :, part].shape[:3], k.shape[2])
            by_place = bias[..., 1:].unflatten(3, k_size)  # b heads q t' h' w'
            by_place.add_(in_places[:, :, part].unsqueeze(-1)).add_(in_columns[:, :, part, None, None])
            outs.append(F.scaled_dot_product_attention(q[:, :, part], k, v, bias, scale=self.scaler))
        out = torch.cat(outs, dim=2)
        if self.residual_pool:
            first = 0 if self.residual_with_cls_embed else 1
            out = torch.cat([out[:, :, :first], out[:, :, first:] + q[:, :, first:]], dim=2)
        return self.project(out.transpose(1, 2).flatten(2)), q_size

    def _pooled(self, pool: Pool | None, tokens: torch.Tensor, size: Size) -> tuple[torch.Tensor, Size]:
        """Tokens by head, all but the class token pooled, `(b, heads, 1 + n', d)`, and their size."""
        tokens = tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # b heads 1+n d
        if pool is None:
            return tokens, size
        volume = tokens[:, :, 1:].unflatten(2, size).flatten(0, 1).permute(0, 4, 1, 2, 3)  # (b heads) d t h w
        volume = pool.pool(volume.contiguous(memory_format=torch.channels_last_3d))
        pooled = volume.flatten(2).transpose(1, 2).unflatten(0, tokens.shape[:2])
        return pool.norm_act(torch.cat([tokens[:, :, :1], pooled], dim=2)), tuple(volume.shape[2:])


def _relative(table: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The positions of keys relative to queries along an axis, `(queries, keys, d)`."""
    length = 2 * max(queries, keys) - 1
    if len(table) != length:
        table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
    q_step, k_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    q = torch.arange(queries, device=table.device)[:, None] * q_step
    k = (torch.arange(keys, device=table.device)[None] + (1.0 - keys)) * k_step
    return table[(q - k).long()]


class FusedBlock(MultiscaleBlock):
    """A block whose attention is fused; its arguments are those of torchvision's."""

    def __init__(
        self,
        input_size: list[int],
        cnf: MSBlockConfig,
        residual_pool: bool,
        residual_with_cls_embed: bool,
        rel_pos_embed: bool,
        proj_after_attn: bool,
        dropout: float = 0.0,
        stochastic_depth_prob: float = 0.0,
        norm_layer: type[nn.Module] = nn.LayerNorm,
    ):
        super().__init__(
            input_size, cnf, residual_pool, residual_with_cls_embed, rel_pos_embed, proj_after_attn, dropout,
            stochastic_depth_prob, norm_layer,
        )  # fmt: skip
        self.attn = FusedAttention(
            input_size,
            cnf.input_channels,
            cnf.output_channels if proj_after_attn else cnf.input_channels,
            cnf.num_heads,
            cnf.kernel_q,
            cnf.kernel_kv,
            cnf.stride_q,
            cnf.stride_kv,
            residual_pool,
            residual_with_cls_embed,
            rel_pos_embed,
            dropout,
            norm_layer,
        )
