"""The published weights of the backbones, from files that other programs wrote, into encoders of this package."""

from os import PathLike

from ..encoders import MViTv2Encoder, VGGishEncoder
from .checkpoint import Names, Source, read_checkpoint, sources_by_name, take_tensors

VGGISH_UNUSED = (r"embeddings\.\d\.(weight|bias)",)  # its fully connected layers

# mmaction2's names of MViTv2, which are also those of DiffSal's release.
MVIT_NAMES: Names = (
    (r"conv_proj\.", "patch_embed.projection."),
    (r"pos_encoding\.class_token", "cls_token"),
    (r"norms\.(\d)\.", r"norm\1."),
    (r"(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"(blocks\.\d+)\.mlp\.0\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.mlp\.3\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d+\.attn)\.project\.0\.", r"\1.proj."),
    (r"(blocks\.\d+\.attn)\.pool_([qkv])\.pool\.", r"\1.pool_\2."),
    (r"(blocks\.\d+\.attn)\.pool_([qkv])\.norm_act\.0\.", r"\1.norm_\2."),
)


def mvit_sources(encoder: MViTv2Encoder, prefix: str) -> dict[str, Source]:
    """What an encoder's tensors are made of, of mmaction2's, whose names begin with `prefix`."""
    sources = sources_by_name(encoder, [(pattern, prefix + to) for pattern, to in MVIT_NAMES] + [("", prefix)])
    sources["pos_encoding.class_token"] = Source({f"{prefix}cls_token": (1, 1, 96)}, lambda token: token[0, 0])
    return sources


def vggish_sources(encoder: VGGishEncoder, prefix: str) -> dict[str, Source]:
    """What an encoder's tensors are made of, of those of VGGish's port, whose names begin with `prefix`."""
    return sources_by_name(encoder, [("", prefix)])


def convert_vggish(file: str | PathLike) -> tuple[VGGishEncoder, list[str]]:
    """The audio encoder from the file of the PyTorch port of Google's VGGish (`features.*`, `embeddings.*`).

    Returns:
        the encoder, and the names of the file's tensors that it has no use for.

    Raises:
        InputError: the file is damaged, or not that.
    """
    encoder = VGGishEncoder().eval()
    networks = [(encoder, vggish_sources(encoder, ""))]
    return encoder, take_tensors(read_checkpoint(file), networks, VGGISH_UNUSED, file, "the weights of VGGish")


def convert_mvit_v2_s(file: str | PathLike) -> tuple[MViTv2Encoder, list[str]]:
    """The video encoder from mmaction2's `mvit-small-p244_16x4x1_kinetics400-rgb` (`backbone.*`).

    That network's last LayerNorm (`backbone.norm3`) is kept; the LayerNorms of the other stages, which it does not
    have, keep their initial values.

    Returns:
        the encoder, and the names of the file's tensors that it has no use for.

    Raises:
        InputError: the file is damaged, or not that.
    """
    encoder = MViTv2Encoder().eval()
    tensors = read_checkpoint(file)
    sources = mvit_sources(encoder, "backbone.")
    for name, tensor in encoder.state_dict().items():
        (published,) = sources[name].shapes
        if name.startswith("norms.") and published not in tensors:
            sources[name] = Source({}, lambda tensor=tensor: tensor)
    unused = (r"cls_head\.fc_cls\.(weight|bias)", r"data_preprocessor\.(mean|std)")
    what = "mmaction2's weights of MViTv2-S"
    return encoder, take_tensors(tensors, [(encoder, sources)], unused, file, what)
