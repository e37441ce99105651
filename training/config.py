"""The settings of a training run: YAML files, overrides, and one clear sentence for a key that does not exist."""

import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from diffusers.optimization import SchedulerType

from ..errors import InputError
from ..metrics import METRICS

CONFIGS = Path(__file__).parent / "configs"
LR_SCHEDULES = tuple(kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT)  # needs rules
COMPONENTS = ("unet", "video_encoder", "audio_encoder", "decoder")
KINDS = (None, "diffsal", "salfom")


@dataclass
class ModelConfig:
    """The networks that are trained.

    Args:
        folder: a pipeline's folder to start from, or a name as `tiny`, whose networks and settings stay, but for
            `frame_size`, `freeze` and `lora_rank`; else a new pipeline is built from the encoders and the settings
            below, most of which are refused beside a folder.
        kind: `diffsal`, or `salfom` for a network that predicts in one pass, from pictures alone: what is about sound,
            noise and the Saliency-UNet is not for it. Null for that of `folder`, `diffsal` of a new pipeline.
        video, audio: names of encoders, see `DiffSalPipeline.from_encoders` and `SalFoMPipeline.from_encoder`. A
            pipeline from `folder` without an audio encoder gets this one; null leaves it without.
        video_config: further settings of the video encoder.
        pretrained, audio_pretrained: their weights: true to download them, or the path of a file or of an
            encoder's folder.
        frame_size: height and width that the networks see; null for those of `folder`, 224x384 of a new pipeline,
            224x224 of SalFoM.
            With a `folder`, another size than its own makes the networks go on at that resolution.
        num_frames: frames of a clip; null for the video encoder's own.
        frame_interval: frames of the video from one frame of a clip to the next.
        num_inference_steps, frame_stride: denoising steps, and frames from one map to the next, by default.
        unet, salfom: further settings of `SaliencyUNet`, of `SalFoM`.
        freeze: components that are not trained, out of video_encoder, audio_encoder, unet; of SalFoM out of
            video_encoder, decoder.
        lora_rank: train low-rank adapters of the U-Net's attention of this rank instead of its weights.
    """

    folder: str | None = None
    kind: str | None = None
    video: str | None = "mvit_v2_s"
    audio: str | None = "vggish"
    video_config: dict[str, Any] = field(default_factory=dict)
    pretrained: bool | str = False
    audio_pretrained: bool | str = False
    frame_size: list[int] | None = None
    num_frames: int | None = None
    frame_interval: int = 1
    num_inference_steps: int = 4
    frame_stride: int = 1
    unet: dict[str, Any] = field(default_factory=dict)
    salfom: dict[str, Any] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    lora_rank: int | None = None


@dataclass
class DataConfig:
    """One data set of the mix.

    Args:
        name, root, split, fold: see `load_saliency_dataset`.
        weight: its share of the clips, in proportion to the others' weights; with equal weights, small sets come as
            often as large ones.
        stride: a clip for every so many frames.
        limit: the first so many videos only.
    """

    name: str
    root: str | None = None
    split: str = "train"
    fold: int | None = None
    weight: float = 1.0
    stride: int = 1
    limit: int | None = None


@dataclass
class ValidationConfig:
    """What is validated on, and when.

    Args:
        data: the data set; null for no validation.
        every: training steps from one validation to the next.
        frame_step: every so many frames are scored.
        metric: whose best value marks the best checkpoint.
        metrics: what is computed.
        num_pictures: videos whose pictures go to the tracker.
    """

    data: DataConfig | None = None
    every: int = 1000
    frame_step: int = 8
    metric: str = "cc"
    metrics: list[str] = field(default_factory=lambda: ["cc", "nss", "auc_judd", "sim"])
    num_pictures: int = 4


@dataclass
class TrainingConfig:
    """A training run.

    Args:
        output: the run's folder.
        data: the mix of data sets.
        model: the networks.
        validation: see [`ValidationConfig`].
        scheduler: name of the noise scheduler, see `list_schedulers`.
        epochs: passes over `epoch_clips`; `steps`, where given, counts instead.
        steps: optimizer steps in all.
        epoch_clips: clips of one epoch; null for as many as the data sets have together.
        batch_size: clips of one optimizer step, over all processes and accumulated batches.
        accumulation: batches whose gradients make one step.
        learning_rate, weight_decay: of Adam (AdamW where there is weight decay).
        learning_rate_scale: factors of the learning rate by component, as `{video_encoder: 0.1}`; 1 for the others.
        lr_schedule, warmup_steps: see `diffusers.optimization.get_scheduler`.
        max_grad_norm: the gradient is clipped to this norm.
        loss: weights of the losses, see `saliency_losses`.
        timestep_shift: draws more of the noisy timesteps: 1 for all alike, 4 for four fifths of them above T / 2. Maps
            are smooth, so that much of them shows through the noise of the others, and a network has little to learn
            from picture and sound there.
        snr_gamma: Min-SNR weighting of timesteps; null for none.
        drop_audio, drop_video: share of samples that lose a modality, which trains the null conditions; never both.
        self_aligned: share of samples whose noisy map is made of the network's own estimate from pure noise
            (self-aligned denoising, arXiv 2303.17559).
        first_estimate: weight of this estimate's own loss, for all samples and without Min-SNR weights. Above 0, the
            gradient of the second estimate flows through the first, too, so that both passes learn to work together;
            after end-to-end fine-tuning of a single step (arXiv 2409.11355).
        augment: mirror, crop and light the pictures of every sample at random.
        ema_decay: of the moving average of the weights, which checkpoints hold; 0 for none. It is warmed up to: after
            n steps the decay is at most 1 - (1 + n)^(-2/3), which is 0.99 at a thousand.
        gradient_checkpointing: less memory, more time.
        mixed_precision: no, fp16 or bf16; null for what `accelerate launch` says.
        seed: of everything random.
        workers: processes that read data.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: the last so many are kept, and the best.
        tracker: tensorboard, wandb, or none.
        log_every: steps from one logged loss to the next.
        strict: end at a broken file; else it is named and skipped.
    """

    output: str
    data: list[DataConfig]
    model: ModelConfig = field(default_factory=ModelConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    scheduler: str = "ddim"
    epochs: int = 5
    steps: int | None = None
    epoch_clips: int | None = None
    batch_size: int = 20
    accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    learning_rate_scale: dict[str, float] = field(default_factory=dict)
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    loss: dict[str, float] = field(default_factory=lambda: {"mse": 1.0})
    timestep_shift: float = 1.0
    snr_gamma: float | None = None
    drop_audio: float = 0.1
    drop_video: float = 0.1
    self_aligned: float = 0.0
    first_estimate: float = 0.0
    augment: bool = False
    ema_decay: float = 0.999
    gradient_checkpointing: bool = False
    mixed_precision: str | None = None
    seed: int = 0
    workers: int = 2
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    tracker: str = "tensorboard"
    log_every: int = 10
    strict: bool = False


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a config.

    Args:
        source: a YAML file, or the name of one that comes with the package.
        overrides: `key=value` each, the key with dots and numbers into lists (`data.0.root=/data`), the value in YAML.

    Raises:
        InputError: the file cannot be read, or a key does not exist or has a wrong value.
    """
    file = Path(source)
    if not file.suffix and not file.exists():
        file = CONFIGS / f"{source}.yaml"
        if not file.exists():
            raise InputError(
                f"there is no config {str(source)!r}; there are {', '.join(list_configs())}, or give a file"
            )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as a YAML file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: a config is a mapping of keys to values")
    for override in overrides:
        _override(content, override)
    return build_config(content, str(file))


def list_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def build_config(content: dict[str, Any], where: str = "the config") -> TrainingConfig:
    """A config out of plain dictionaries.

    Raises:
        InputError: a key does not exist, is missing, or has a value of a wrong type.
    """
    config = _build(TrainingConfig, content, where, "")
    _check(config, where)
    return config


def _check(config: TrainingConfig, where: str) -> None:
    """Refuses values that cannot be right."""
    counts = {
        "batch_size": config.batch_size, "accumulation": config.accumulation, "epochs": config.epochs,
        "steps": config.steps, "epoch_clips": config.epoch_clips, "checkpoint_every": config.checkpoint_every,
        "keep_checkpoints": config.keep_checkpoints, "log_every": config.log_every,
        "validation.every": config.validation.every, "validation.frame_step": config.validation.frame_step,
        "model.lora_rank": config.model.lora_rank, "model.num_inference_steps": config.model.num_inference_steps,
        "model.frame_stride": config.model.frame_stride, "model.frame_interval": config.model.frame_interval,
        "validation.data.limit": None if config.validation.data is None else config.validation.data.limit,
    } | {f"data.{i}.stride": data.stride for i, data in enumerate(config.data)}  # fmt: skip
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{where}: `{name}` must be at least 1, got {value}")
    shares = {"drop_audio": config.drop_audio, "drop_video": config.drop_video, "self_aligned": config.self_aligned}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise InputError(f"{where}: `{name}` must be from 0 to 1, got {value}")
    if config.drop_audio + config.drop_video > 1:
        raise InputError(f"{where}: `drop_audio` and `drop_video` must not be more than 1 together")
    for name in ("weight_decay", "warmup_steps", "workers", "seed"):
        if not 0 <= getattr(config, name) < 2**28:
            raise InputError(f"{where}: `{name}` must be at least 0 and below 2^28, got {getattr(config, name)}")
    if not 0 <= config.first_estimate < math.inf:
        raise InputError(f"{where}: `first_estimate` must be a number of at least 0, got {config.first_estimate}")
    if config.first_estimate > 0 and config.self_aligned == 0:
        raise InputError(f"{where}: `first_estimate` needs `self_aligned` above 0, for samples that have one")
    for name in ("learning_rate", "max_grad_norm", "timestep_shift"):
        if not getattr(config, name) > 0:
            raise InputError(f"{where}: `{name}` must be above 0, got {getattr(config, name)}")
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"{where}: `ema_decay` must be from 0 to below 1, got {config.ema_decay}")
    for name, scale in config.learning_rate_scale.items():
        if name not in COMPONENTS or not scale > 0:
            raise InputError(
                f"{where}: `learning_rate_scale` has numbers above 0 for {', '.join(COMPONENTS)}, got {name}: {scale}"
            )
    for name in config.model.freeze:
        if name not in COMPONENTS:
            raise InputError(f"{where}: `model.freeze` may name {', '.join(COMPONENTS)}; got {name!r}")
    for i, data in enumerate(config.data):
        if not data.weight > 0:
            raise InputError(f"{where}: `data.{i}.weight` must be above 0, got {data.weight}")
    choices = {
        "model.kind": (config.model.kind, KINDS),
        "mixed_precision": (config.mixed_precision, (None, "no", "fp16", "bf16")),
        "tracker": (config.tracker, ("tensorboard", "wandb", "none")),
        "lr_schedule": (config.lr_schedule, LR_SCHEDULES),
        "validation.metric": (config.validation.metric, tuple(config.validation.metrics)),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise InputError(
                f"{where}: `{name}` must be one of {', '.join(k or 'null' for k in known)}, got {value!r}"
            )
    for metric in config.validation.metrics:
        if metric not in METRICS:
            raise InputError(f"{where}: there is no metric {metric!r}; there are {', '.join(METRICS)}")


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"{override!r}: an override is KEY=VALUE, as learning_rate=1e-4 or data.0.root=/data")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: {text!r} is no YAML value") from error
    *parents, last = path.split(".")
    place: Any = content
    for key in parents:
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, dict):
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
        else:
            raise InputError(f"{override!r}: there is nothing at {key!r}")
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InputError(f"{override!r}: there is nothing at {last!r}")


def _build(kind: Any, value: Any, where: str, path: str) -> Any:
    """`value` as `kind`, a dataclass or a type of its fields."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where}: `{path or 'the whole'}` must be a mapping of keys to values, got {value!r}")
        known = {f.name: f for f in fields(kind)}
        types = typing.get_type_hints(kind)
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key), known)
                hint = f", did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}"
                raise InputError(f"{where}: there is no key `{_join(path, key)}`{hint}")
        for name, f in known.items():
            if name not in value and f.default is MISSING and f.default_factory is MISSING:
                raise InputError(f"{where}: `{_join(path, name)}` is missing")
        return kind(**{key: _build(types[key], v, where, _join(path, key)) for key, v in value.items()})
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: `{path}` must be a list, got {value!r}")
        return [_build(arguments[0], v, where, f"{path}.{i}") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: `{path}` must be a mapping, got {value!r}")
        return {str(k): _build(arguments[1], v, where, _join(path, k)) for k, v in value.items()}
    if kind is Any:
        return value
    kinds = arguments or (kind,)
    for one in kinds:
        if isinstance(value, dict if is_dataclass(one) else typing.get_origin(one) or ()):
            return _build(one, value, where, path)
    if float in kinds and isinstance(value, str):  # YAML takes 1e-4 for a string
        try:
            return float(value)
        except ValueError:
            pass
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    for one in kinds:
        if not typing.get_origin(one) and isinstance(value, one) and (one is bool or not isinstance(value, bool)):
            return value
    names = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
    raise InputError(f"{where}: `{path}` must be {names}, got {value!r}")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
