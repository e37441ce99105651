"""The encoders by name: built-in ones, timm's models as `timm/<model>`, and those that users register."""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, NamedTuple, TypeVar

from ..errors import InputError
from .base import AudioEncoder, ConditionEncoder, VideoEncoder

EncoderClass = TypeVar("EncoderClass", bound=type[ConditionEncoder])


class _Entry(NamedTuple):
    encoder_class: type[ConditionEncoder]
    defaults: dict[str, Any]


_VIDEO_ENCODERS: dict[str, _Entry] = {}
_AUDIO_ENCODERS: dict[str, _Entry] = {}


def register_video_encoder(name: str, **defaults: Any) -> Callable[[EncoderClass], EncoderClass]:
    """Class decorator: makes a [`VideoEncoder`] available as `name`, created with `defaults` as its configuration."""
    return _register(_VIDEO_ENCODERS, VideoEncoder, name, defaults)


def register_audio_encoder(name: str, **defaults: Any) -> Callable[[EncoderClass], EncoderClass]:
    """Class decorator: makes an [`AudioEncoder`] available as `name`, created with `defaults` as its configuration."""
    return _register(_AUDIO_ENCODERS, AudioEncoder, name, defaults)


def create_video_encoder(name: str, pretrained: bool | str | PathLike = False, **config: Any) -> VideoEncoder:
    """Creates a video encoder.

    Args:
        name: one of [`list_video_encoders`], or `timm/<model>` for a model of timm, as `timm/efficientnet_lite0`.
        pretrained: `True` for the weights published with the backbone (Kinetics-400 or ImageNet), the path of a local
            file with them, or `False` for random ones. Not part of the configuration.
        config: values of the encoder's configuration.

    Raises:
        InputError: there is no such encoder or configuration, or the weights cannot be had.
    """
    if name.startswith("timm/"):
        if "model_name" in config:
            raise InputError(f"{name!r} names the model already: leave out model_name={config['model_name']!r}")
        name, config = "timm", {"model_name": name.removeprefix("timm/"), **config}
    return _create(_VIDEO_ENCODERS, "video", name, pretrained, config)


def create_audio_encoder(name: str, pretrained: bool | str | PathLike = False, **config: Any) -> AudioEncoder:
    """Creates an audio encoder, one of [`list_audio_encoders`]; see [`create_video_encoder`]."""
    return _create(_AUDIO_ENCODERS, "audio", name, pretrained, config)


def list_video_encoders() -> list[str]:
    """The names of the registered video encoders. `timm` stands for every `timm/<model>`."""
    return sorted(_VIDEO_ENCODERS)


def list_audio_encoders() -> list[str]:
    """The names of the registered audio encoders."""
    return sorted(_AUDIO_ENCODERS)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The first part of a message: the name is not known, and which known ones look like it."""
    close = difflib.get_close_matches(name, list(known))
    return f"there is no {what} {name!r}" + (f", did you mean {' or '.join(close)}?" if close else "")


def _register(registry: dict[str, _Entry], base: type, name: str, defaults: dict[str, Any]) -> Callable:
    def decorate(encoder_class: EncoderClass) -> EncoderClass:
        if not (isinstance(encoder_class, type) and issubclass(encoder_class, base)):
            raise InputError(f"{name!r} cannot be registered: {encoder_class!r} is not a subclass of {base.__name__}")
        known = registry.get(name)
        # A module that is run again, as a notebook's cell, brings its class anew and may replace it.
        if known and _identity(known.encoder_class) != _identity(encoder_class):
            raise InputError(f"{name!r} is registered already, for {'.'.join(_identity(known.encoder_class))}")
        registry[name] = _Entry(encoder_class, defaults)
        # diffusers loads a pipeline's component only if its module has a loadable base class among its names.
        module = sys.modules.get(encoder_class.__module__)
        if module is not None and not hasattr(module, base.__name__):
            setattr(module, base.__name__, base)
        return encoder_class

    return decorate


def _identity(encoder_class: type) -> tuple[str, str]:
    return encoder_class.__module__, encoder_class.__qualname__


def _create(
    registry: dict[str, _Entry], kind: str, name: str, pretrained: bool | str | PathLike, config: dict[str, Any]
) -> ConditionEncoder:
    if name not in registry:
        known = f"the {kind} encoders are: {', '.join(sorted(registry))}"
        raise InputError(f"{unknown_name(f'{kind} encoder', name, registry)}; {known}")
    encoder_class, defaults = registry[name]
    config = {**defaults, **config}
    parameters = inspect.signature(encoder_class).parameters
    accepted = f"{encoder_class.__name__} takes: {', '.join(parameters) or 'none'}"
    for key in sorted(config.keys() - parameters.keys()):
        raise InputError(f"{unknown_name(f'configuration key of {name!r},', key, parameters)}; {accepted}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in config:
            raise InputError(f"{name!r} needs the configuration key {key!r}; {accepted}")
    encoder = encoder_class(**config)
    if pretrained is not False:
        encoder.load_pretrained(pretrained)
    return encoder
