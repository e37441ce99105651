"""Models by name, and loading from folders."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from .errors import InputError
from .models import SALFOM_CONFIGS
from .pipelines import DiffSalPipeline, SalFoMPipeline, SaliencyPipeline


def _light() -> DiffSalPipeline:
    return DiffSalPipeline.from_encoders(
        video="timm/efficientnet_lite0",
        audio="log_mel_cnn",
        block_out_channels=(16, 32, 64, 128),
        head_channels=64,
        norm_num_groups=8,
        num_attention_heads=1,
    )


def _paper() -> DiffSalPipeline:
    return DiffSalPipeline.from_encoders(video="mvit_v2_s", audio="vggish")


PRETRAINED_MODELS = Path(__file__).parent / "pretrained_models"
UNTRAINED_MODELS: dict[str, Callable[[], SaliencyPipeline]] = {
    "untrained-light": _light,
    "untrained-paper": _paper,
    "untrained-salfom": lambda: SalFoMPipeline.from_encoder(**SALFOM_CONFIGS["base"]),
}
PIPELINES = (DiffSalPipeline.__name__, SalFoMPipeline.__name__)
DEFAULT_MODEL = "tiny"


def list_pretrained() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(index.parent.name for index in PRETRAINED_MODELS.glob("*/model_index.json"))


def pretrained(name: str = DEFAULT_MODEL) -> Path:
    """The folder of a trained model that comes with the package, for `DiffusionPipeline.from_pretrained`.

    Args:
        name: one of [`list_pretrained`].

    Raises:
        InputError: there is no such model.
    """
    if name not in list_pretrained():
        raise InputError(f"there is no trained model {name!r}; there are {', '.join(list_pretrained())}")
    return PRETRAINED_MODELS / name


def list_models() -> list[str]:
    """The names that [`load_pipeline`] knows."""
    return [*list_pretrained(), *UNTRAINED_MODELS]


def load_pipeline(model: str | Path = DEFAULT_MODEL, seed: int = 0) -> SaliencyPipeline:
    """A pipeline by name or from a folder.

    Args:
        model: `"tiny"` (trained, see its model card in [`pretrained`]'s folder), `"untrained-light"` (a light image
            backbone and a small U-Net), `"untrained-paper"` and `"untrained-salfom"` (the networks of the two papers),
            or a folder that `save_pretrained` wrote. A folder that is called like one of these is given as a `Path`,
            or as `./tiny`.
        seed: of the untrained models' weights.

    Raises:
        InputError: there is no such model, or the folder is not a complete model.
    """
    if model in list_pretrained():
        return _load_folder(pretrained(model))
    if model in UNTRAINED_MODELS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNTRAINED_MODELS[model]()
    return _load_folder(Path(model))


def _load_folder(folder: Path) -> SaliencyPipeline:
    if not folder.is_dir():
        raise InputError(
            f"there is no model {str(folder)!r}; give a model's folder or one of {', '.join(list_models())}"
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        class_name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not a model's folder: it needs a model_index.json with a `_class_name`, which "
            "`save_pretrained` writes"
        ) from error
    if class_name not in PIPELINES:
        raise InputError(
            f"{folder / 'model_index.json'}: `_class_name` must be one of {', '.join(PIPELINES)}, got {class_name!r}"
        )
    # An optional component that the model is without is declared as [null, null].
    for name, kind in index.items():
        if isinstance(kind, list) and kind != [None, None] and not (folder / name).is_dir():
            raise InputError(
                f"{folder} is not a complete model: its model_index.json names {name}, but has no such folder"
            )
    try:
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise InputError(f"{folder}: {error}") from error
    except Exception as error:  # a damaged file makes diffusers and the components raise anything
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{folder} is not a complete model; save it anew with `save_pretrained` ({reason})"
        ) from error
