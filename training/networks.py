"""The networks that a run trains: a new pipeline or a folder's, what is frozen of it, and what is added."""

import copy
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging

from ..encoders import create_video_encoder
from ..encoders.pretrained import one_line
from ..errors import InputError
from ..models import SalFoM, SaliencyUNet
from ..pipelines import DiffSalPipeline, SalFoMPipeline, SaliencyPipeline
from ..presets import load_pipeline
from ..processing import SaliencyProcessor
from ..schedulers import create_scheduler
from .config import ModelConfig, TrainingConfig

logger = logging.get_logger(__name__)

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out"]
# What is about noise, sound and the Saliency-UNet, and what it must be for a network without them.
WITHOUT_DENOISING = {
    "scheduler": ("ddim",),
    "timestep_shift": (1.0,),
    "snr_gamma": (None,),
    "self_aligned": (0.0,),
    "first_estimate": (0.0,),
    "drop_audio": (0.0, TrainingConfig.drop_audio),
    "drop_video": (0.0, TrainingConfig.drop_video),
    "model.unet": ({},),
    "model.lora_rank": (None,),
    "model.num_inference_steps": (ModelConfig.num_inference_steps,),
    "model.audio": (None, ModelConfig.audio),
    "model.audio_pretrained": (False,),
}

# Settings of `model` that a folder's networks have already, so that others beside it would do nothing.
OF_NEW_NETWORKS = (
    "video_config", "pretrained", "num_frames", "frame_interval", "num_inference_steps", "frame_stride", "salfom",
)  # fmt: skip


def build_pipeline(config: TrainingConfig) -> SaliencyPipeline:
    """The pipeline to train, its frozen parts frozen, with adapters where they are asked for.

    Raises:
        InputError: no network can be made of the settings, or some of them are not for this one.
    """
    model = config.model
    check_keys("model.unet", model.unet, SaliencyUNet)
    check_keys("model.salfom", model.salfom, SalFoM, ("encoder", "encoder_config", "num_frames"))
    try:
        if model.folder is None:
            pipe = create_salfom(model) if model.kind == "salfom" else create_diffsal(model)
        else:
            pipe = load_pipeline(model.folder)
            kind = "salfom" if isinstance(pipe, SalFoMPipeline) else "diffsal"
            if model.kind not in (None, kind):
                raise InputError(f"{model.folder}: `model.kind` is {kind} there, and {model.kind} in this config")
            for key in OF_NEW_NETWORKS:
                if getattr(model, key) != getattr(ModelConfig(), key):
                    raise InputError(f"`model.{key}` is for a new network; with `model.folder` its own settings stay")
            if isinstance(pipe, DiffSalPipeline):
                if not isinstance(pipe.unet, SaliencyUNet):
                    raise InputError(f"{model.folder}: the released network can predict, and cannot be trained here")
                if pipe.audio_encoder is None and model.audio is not None:
                    pipe = add_audio(pipe, config)
            if model.frame_size is not None:
                pipe.processor = SaliencyProcessor.from_config(
                    pipe.processor.config, frame_size=tuple(model.frame_size)
                )
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`model` has settings of which no network can be made ({reason})") from error
    names = {*pipe.components, *pipe.networks}
    for key, of_parts in (("model.freeze", model.freeze), ("learning_rate_scale", config.learning_rate_scale)):
        for name in of_parts:
            if name not in names:
                raise InputError(f"`{key}`: this model has {', '.join(pipe.networks)}, got {name!r}")
    for name, part in pipe.networks.items():
        part.requires_grad_(name not in model.freeze).eval()
    if isinstance(pipe, DiffSalPipeline):
        prepare_diffsal(pipe, config)
    else:
        check_without_denoising(config)
        freeze_unread(pipe)
    if config.gradient_checkpointing:
        for name, part in pipe.networks.items():
            if name not in model.freeze and getattr(part, "_supports_gradient_checkpointing", False):
                part.enable_gradient_checkpointing()
    return pipe


def check_keys(path: str, settings: Mapping[str, Any], network: type, elsewhere: tuple[str, ...] = ()) -> None:
    """Refuses settings that a network does not have, or that other keys of the config set."""
    known = [key for key in inspect.signature(network).parameters if key not in elsewhere]
    for key in settings:
        if key not in known:
            raise InputError(f"there is no key `{path}.{key}`; there are {', '.join(known)}")


def check_without_denoising(config: TrainingConfig) -> None:
    """Refuses settings that SalFoM would silently do nothing with."""
    for path, allowed in WITHOUT_DENOISING.items():
        value = config
        for name in path.split("."):
            value = getattr(value, name)
        if value not in allowed:
            raise InputError(f"`{path}` is for DiffSal, and SalFoM neither denoises nor listens: leave it out")


def freeze_unread(pipe: SalFoMPipeline) -> None:
    """No gradient for what does not reach the map: an encoder's parts for scales other than the one that SalFoM reads.
    Processes that train together wait for the gradients of all that has one."""
    config = pipe.processor.config
    probe = copy.deepcopy(pipe.salfom).to("meta").requires_grad_(True).eval()
    with torch.device("meta"):
        try:
            saliency = probe(torch.zeros(1, 3, config.num_frames, *config.frame_size)).saliency
        except Exception as error:  # a user's own encoder may not run without data
            logger.warning(
                f"which parts of {pipe.salfom.config.encoder} reach the map cannot be told without data "
                f"({one_line(error)}): all of it is trained, and several processes may wait for gradients of the rest"
            )
            return
        saliency.sum().backward()
    for parameter, probed in zip(pipe.salfom.parameters(), probe.parameters(), strict=True):
        if probed.grad is None:
            parameter.requires_grad_(False)


def prepare_diffsal(pipe: DiffSalPipeline, config: TrainingConfig) -> None:
    """The run's scheduler, no gradient where nothing flows, and adapters."""
    model = config.model
    pipe.scheduler = create_scheduler(config.scheduler)
    if pipe.audio_encoder is None and pipe.unet.config.interaction != "none":
        pipe.unet.audio_enhancement.requires_grad_(False)  # nothing flows through it
    if pipe.video_encoder is None:
        pipe.unet.video_proj.requires_grad_(False)
    if pipe.audio_encoder is not None and pipe.unet.config.interaction == "none":
        pipe.audio_encoder.requires_grad_(False)
    if model.lora_rank is not None:
        require_package("peft", "`model.lora_rank`")
        from peft import LoraConfig

        for part in pipe.networks.values():
            part.requires_grad_(False)
        if pipe.unet.config.attention == "none":
            raise InputError("`model.lora_rank` adapts the U-Net's attention, and `model.unet.attention` is none")
        pipe.unet.add_adapter(LoraConfig(r=model.lora_rank, lora_alpha=model.lora_rank, target_modules=LORA_TARGETS))


def create_diffsal(model: ModelConfig) -> DiffSalPipeline:
    """A new pipeline of the config's encoders."""
    if model.salfom:
        raise InputError("`model.salfom` is for `model.kind` salfom; DiffSal's network has `model.unet`")
    video = model.video
    if video is not None and model.video_config:
        length = {} if model.num_frames is None else {"num_frames": model.num_frames}
        video = create_video_encoder(video, pretrained=model.pretrained, **length, **model.video_config)
    return DiffSalPipeline.from_encoders(
        video,
        model.audio,
        pretrained=model.pretrained,
        audio_pretrained=model.audio_pretrained,
        frame_size=(224, 384) if model.frame_size is None else tuple(model.frame_size),
        num_frames=model.num_frames,
        frame_interval=model.frame_interval,
        num_inference_steps=model.num_inference_steps,
        frame_stride=model.frame_stride,
        **model.unet,
    )


def create_salfom(model: ModelConfig) -> SalFoMPipeline:
    """A new pipeline on the config's video encoder."""
    if model.video is None:
        raise InputError("`model.video` must name an encoder: SalFoM sees only")
    for key in ("num_frames", "pretrained"):
        if key in model.video_config:
            raise InputError(f"`model.video_config.{key}` must be given as `model.{key}`")
    return SalFoMPipeline.from_encoder(
        model.video,
        pretrained=model.pretrained,
        encoder_config=model.video_config,
        frame_size=(224, 224) if model.frame_size is None else tuple(model.frame_size),
        num_frames=model.num_frames,
        frame_interval=model.frame_interval,
        frame_stride=model.frame_stride,
        **model.salfom,
    )


def require_package(name: str, what_for: str) -> None:
    """Refuses settings that need a package which is not installed."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"the package {name} is not installed, and is needed for {what_for}")


def add_audio(pipe: DiffSalPipeline, config: TrainingConfig) -> DiffSalPipeline:
    """A pipeline that listens, with all that one without sound has learned: stage 2 from stage 1."""
    settings = {**pipe.unet.config, **config.model.unet}
    follows = ("video_channels", "video_time_slices", "audio_channels", "audio_time_slices")
    heard = DiffSalPipeline.from_encoders(
        pipe.video_encoder,
        config.model.audio,
        audio_pretrained=config.model.audio_pretrained,
        frame_size=tuple(pipe.processor.config.frame_size),
        num_frames=pipe.processor.config.num_frames,
        frame_interval=pipe.processor.config.frame_interval,
        num_inference_steps=pipe.config.default_num_inference_steps,
        frame_stride=pipe.config.default_frame_stride,
        **{key: value for key, value in settings.items() if key not in follows and not key.startswith("_")},
    )
    learned = {name: value for name, value in pipe.unet.state_dict().items() if "audio" not in name}
    absent, unexpected = heard.unet.load_state_dict(learned, strict=False)
    assert not unexpected and all("audio" in name for name in absent)
    return heard
