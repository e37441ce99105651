"""A published file of weights: reading it, and taking from it what a network of this package is made of."""

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import NamedTuple

import torch
from torch import nn

from ..encoders.pretrained import one_line
from ..errors import InputError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module")  # what programs call the weights among other things
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Patterns of a network's names of weights, each with the published name, in which \1 is the pattern's first group.
Names = Sequence[tuple[str, str]]


class Source(NamedTuple):
    """What a tensor is made of.

    Args:
        shapes: of the published tensors, by name.
        make: the tensor, from those.
    """

    shapes: dict[str, tuple[int, ...]]
    make: Callable[..., torch.Tensor]


def read_checkpoint(file: str | PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a published PyTorch file, or of its `state_dict`, `model_state_dict`, `model` or `module`,
    without `module.` before their names.

    Nothing in the file is run, and what else it holds, as an optimizer's state, is not read into memory.

    Raises:
        InputError: it cannot be read, or holds no tensors by name, or tensors of an unusual kind.
    """
    try:
        with open(file, "rb"):
            pass
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or one_line(error, 100)}") from error
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise InputError(
            f"{file}: cannot be read as a PyTorch checkpoint of tensors; it is damaged or cut short, no such file at "
            f"all, or holds objects that only its own program should load ({one_line(error, 100)})"
        ) from error
    tensors = content
    if isinstance(content, Mapping):
        tensors = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(tensors, Mapping) or not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"{file}: holds no weights; a dictionary of tensors is needed, or one under `state_dict`")
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not dense or not (value.dtype in FLOATS or value.dtype == torch.int64):
            raise InputError(f"{file}: the tensor {shown(name)} is not one of plain numbers ({value.dtype})")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def shown(name: str) -> str:
    """A tensor's name as a file gives it, safe to print."""
    return ascii(name)[1:-1] if len(name) <= 100 else ascii(name[:100])[1:-1] + "..."


def sources_by_name(network: nn.Module, names: Names) -> dict[str, Source]:
    """The sources of a network's tensors, of published ones that have other names and the same shapes."""
    sources = {}
    for name, tensor in network.state_dict().items():
        published = next(
            (re.sub(pattern, to, name, count=1) for pattern, to in names if re.match(pattern, name)), name
        )
        sources[name] = Source({published: tuple(tensor.shape)}, lambda tensor: tensor)
    return sources


def take_tensors(
    tensors: Mapping[str, torch.Tensor],
    networks: Iterable[tuple[nn.Module, Mapping[str, Source]]],
    unused: Sequence[str],
    file: object,
    what: str,
) -> list[str]:
    """Copies published tensors into networks: all that are needed, or none.

    Args:
        tensors: the published ones, by name.
        networks: each with the sources of its tensors.
        unused: patterns of names that the networks have no use for.
        file, what: where the tensors come from and what is expected there, for messages.

    Returns:
        the names that were not used.

    Raises:
        InputError: a tensor is missing, is not known, has another shape, or holds values that are no numbers.
    """
    networks = list(networks)
    shapes = {name: shape for _, sources in networks for s in sources.values() for name, shape in s.shapes.items()}
    left = [name for name in tensors if name not in shapes]
    refuse(file, what, "missing", [name for name in shapes if name not in tensors])
    refuse(file, what, "not known", [name for name in left if not any(re.fullmatch(p, name) for p in unused)])
    refuse(file, what, "of another shape", [name for name in shapes if tuple(tensors[name].shape) != shapes[name]])
    made = [
        {name: s.make(*(tensors[published].float() for published in s.shapes)) for name, s in sources.items()}
        for _, sources in networks
    ]
    for (_, sources), values in zip(networks, made, strict=True):
        wrong = [next(iter(sources[name].shapes)) for name, value in values.items() if not value.isfinite().all()]
        refuse(file, what, "whose values are no finite numbers", wrong)
    for (network, _), values in zip(networks, made, strict=True):
        network.load_state_dict(values)
    return left


def refuse(file: object, what: str, problem: str, names: Sequence[str]) -> None:
    """Raises an InputError if there are tensors with some problem."""
    if names:
        raise InputError(f"{file}: not {what}; tensors {problem}: {len(names)}, the first is {shown(names[0])}")
