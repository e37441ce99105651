"""The weights of SalFoM, and of the video foundation model that it is built on, from their published files."""

import math
from os import PathLike

import torch

from ..encoders import UMTEncoder, create_video_encoder
from ..encoders.umt import TABLE_GRID, resize_positions
from ..errors import InputError
from ..pipelines import SalFoMPipeline
from .checkpoint import Names, Source, read_checkpoint, sources_by_name, take_tensors

UMT_NAMES: Names = (
    (r"patch_embed\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(?:query|key|value)\.weight", r"blocks.\1.attn.qkv.weight"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.query\.bias", r"blocks.\1.attn.q_bias"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.value\.bias", r"blocks.\1.attn.v_bias"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
)
DECODER_NAMES: Names = (
    *(
        (rf"tcfe\.stages\.{i}\.{ours}", f"transformer_{i + 1}.{published}")
        for i in range(3)
        for ours, published in (
            (r"patch_embed\.", "patch_embed.proj."),
            (r"blocks\.(\d)\.mlp\.0\.", r"layers.0.blocks.\1.mlp.fc1."),
            (r"blocks\.(\d)\.mlp\.2\.", r"layers.0.blocks.\1.mlp.fc2."),
            (r"blocks\.", "layers.0.blocks."),
        )
    ),
    *((rf"dfd\.convs\.{i}\.", f"conv_{i + 1}.") for i in range(6)),
    *((rf"sfd\.time_convs\.{2 * i}\.", f"conv_t1_{i + 1}.") for i in range(4)),
    *(
        (rf"sfd\.scales\.{scale}\.", f"conv_2D_{i + 1}.")
        for i, scale in enumerate((r"0\.0", r"0\.2", r"0\.4", r"1\.0", r"1\.2", r"2\.0", r"3\.0", r"3\.2", r"4\.0"))
    ),
    *((rf"sfd\.laterals\.0\.{2 * i}\.", f"conv_t2_{i + 1}.") for i in range(3)),
    *((rf"sfd\.laterals\.1\.{2 * i}\.", f"conv_t3_{i + 1}.") for i in range(2)),
    *((rf"head\.{2 * i}\.", f"conv_{i + 7}.") for i in range(3)),
)
UMT_UNUSED = (r"(fc_)?norm\.(weight|bias)", r"head\.(weight|bias)")
SALFOM_UNUSED = (
    *(rf"encoder\.{pattern}" for pattern in UMT_UNUSED),
    r"transformer_\d\.norm\.(weight|bias)",
    r"conv_t3_3\.(weight|bias)",
    r"final_map\.(weight|bias)",
    r"transformer_\d\.layers\.0\.blocks\.\d\.attn\.relative_position_index",  # follows from the windows' size
)
VARIANTS = {768: "umt_b16", 1024: "umt_l16"}


def umt_sources(encoder: UMTEncoder, prefix: str) -> dict[str, Source]:
    """What an encoder's tensors are made of, of published ones whose names begin with `prefix`."""
    channels = encoder.config.hidden_size
    sources = sources_by_name(encoder, [(pattern, prefix + to) for pattern, to in UMT_NAMES] + [("", prefix)])
    for name in sources:
        for i, part in enumerate(("query", "key", "value")):  # published as one matrix
            if name.endswith(f"attention.{part}.weight"):
                ((published, _),) = sources[name].shapes.items()
                rows = slice(i * channels, (i + 1) * channels)
                sources[name] = Source({published: (3 * channels, channels)}, lambda qkv, rows=rows: qkv[rows])
    sources["pos_embed"] = positions_source(encoder, prefix, encoder.config.num_frames)
    return sources


def positions_source(encoder: UMTEncoder, prefix: str, slices: int) -> Source:
    """What the positions are made of, of published ones for so many slices."""
    *grid, channels = encoder.pos_embed.shape[1:]
    size = tuple(encoder.pos_embed.shape[:3])
    return Source(
        {f"{prefix}pos_embed": (1, slices * grid[0] * grid[1], channels)},
        lambda table: resize_positions(table.view(slices, *grid, channels), size),
    )


def convert_umt(file: str | PathLike) -> tuple[UMTEncoder, list[str]]:
    """The video encoder from a checkpoint of UnMasked Teacher, ViT-B/16 or ViT-L/16, fine-tuned on Kinetics.

    Returns:
        the encoder, for 16 frames, and the names of the file's tensors that it has no use for.

    Raises:
        InputError: the file is damaged, or not that.
    """
    tensors = read_checkpoint(file)
    patch_embed = tensors.get("patch_embed.proj.weight", torch.zeros(()))
    channels = patch_embed.shape[0] if patch_embed.ndim == 5 else None
    if channels not in VARIANTS:
        got = "no 5-dimensional `patch_embed.proj.weight`" if channels is None else f"{channels} channels"
        raise InputError(f"{file}: not the weights of UMT ViT-B/16 or ViT-L/16: it has {got}")
    encoder = create_video_encoder(VARIANTS[channels]).eval()
    sources = umt_sources(encoder, "")
    positions = tensors.get("pos_embed")
    if positions is None:  # they are not learned, and the initial ones then
        sources["pos_embed"] = Source({}, lambda: encoder.pos_embed.detach())
    elif positions.numel() == channels * math.prod(TABLE_GRID):  # for as many slices as their table has
        sources["pos_embed"] = positions_source(encoder, "", TABLE_GRID[0])
    networks = [(encoder, sources)]
    return encoder, take_tensors(tensors, networks, UMT_UNUSED, file, f"the weights of {VARIANTS[channels]}")


def convert_salfom(file: str | PathLike) -> tuple[SalFoMPipeline, list[str]]:
    """The pipeline of a checkpoint of SalFoM.

    Returns:
        the pipeline, and the names of the file's tensors that it has no use for.

    Raises:
        InputError: the file is damaged, or not that.
    """
    tensors = read_checkpoint(file)
    pipe = SalFoMPipeline.from_encoder()
    encoder, decoder = pipe.salfom.video_encoder, pipe.salfom.decoder
    networks = [(encoder, umt_sources(encoder, "encoder.")), (decoder, sources_by_name(decoder, DECODER_NAMES))]
    return pipe, take_tensors(tensors, networks, SALFOM_UNUSED, file, "SalFoM's released checkpoint")
