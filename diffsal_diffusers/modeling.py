"""What all networks of the package share: the scales, and diffusers' model class with strict loading of weights."""

from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError

from .errors import InputError

STRIDES = (4, 8, 16, 32)  # pixels of the frame per pixel of the video features and the U-Net's, finest scale first


def count_parameters(*networks: torch.nn.Module) -> int:
    """The parameters of some networks together."""
    return sum(p.numel() for network in networks for p in network.parameters())


class StrictModelMixin(ModelMixin):
    """diffusers' `ModelMixin`, whose `from_pretrained` accepts complete safetensors weights only.

    diffusers fills a missing weight with random numbers and a warning, and falls back to a pickle where there are no
    safetensors. Here both raise.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads a folder or a hub repository written by `save_pretrained`; see `ModelMixin.from_pretrained`.

        Raises:
            InputError: the weights are missing, damaged, pickled, or not those of the model that the config describes.
        """
        where = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        with_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (InputError, torch.OutOfMemoryError):
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{where}: the weights of {cls.__name__} cannot be loaded; a complete safetensors file that matches "
                f"config.json is needed ({reason[:300]})"
            ) from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                keys = sorted(str(key) for key in info[problem])
                raise InputError(
                    f"{where}: the weights do not match the config of {cls.__name__}: {len(keys)} "
                    f"{problem.replace('_', ' ')}, the first is {keys[0]}"
                )
        return (model, info) if with_info else model
