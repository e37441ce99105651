"""What a run trains, on what, and the memory that it will take: told before it starts."""

import copy
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from ..data import SaliencyClips
from ..modeling import count_parameters
from ..pipelines import SalFoMPipeline, SaliencyPipeline
from .config import TrainingConfig


def state_bytes(pipe: SaliencyPipeline, ema: bool) -> int:
    """Bytes of weights, their copy to validate and save, gradients, Adam's moments and averages, in float32."""
    total = 0
    for part in pipe.networks.values():
        for p in part.parameters():
            copies = 2 + (3 + int(ema) if p.requires_grad else 0)
            total += copies * p.numel() * 4
    return total


def activation_bytes(pipe: SaliencyPipeline, batch_size: int) -> int:
    """Bytes that the backward pass will need of the forward one, for a batch, in float32.

    Counted on the device `meta`, where nothing is computed, for one clip; a clip more takes as much again.
    """
    config = pipe.processor.config
    height, width = config.frame_size
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.requires_grad and tensor.is_leaf):  # a weight
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    parts = {
        name: copy.deepcopy(part).to("meta").train()
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        video = torch.zeros(1, 3, config.num_frames, height, width)
        if isinstance(pipe, SalFoMPipeline):
            parts["salfom"](video)
        else:
            features, audio = None, None
            if "video_encoder" in parts:
                features = parts["video_encoder"](video).features
            if "audio_encoder" in parts:
                slices = torch.zeros(1, 1, config.audio_slices, *config.audio_size)
                audio = parts["audio_encoder"](slices).features[0]
            parts["unet"](torch.zeros(1, pipe.unet.config.in_channels, height, width), 0, features, audio)
    return batch_size * sum(storage.nbytes() for storage in kept.values())


def summarize(
    config: TrainingConfig,
    pipe: SaliencyPipeline,
    clips: Sequence[SaliencyClips],
    steps: int,
    accelerator: Accelerator,
) -> str:
    """The summary, in lines."""
    lines = ["what trains:"]
    for name, part in pipe.networks.items():
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        lines.append(f"  {name:14} {trained / 1e6:8.2f} of {count_parameters(part) / 1e6:.2f} M parameters")
    lines.append("on what:")
    weights = sum(data.weight for data in config.data)
    for data, dataset in zip(config.data, clips, strict=True):
        lines.append(f"  {data.name:14} {len(dataset):8} clips, {100 * data.weight / weights:.0f} % of each epoch")
    processes = accelerator.num_processes
    share = processes * config.accumulation
    lines.append(
        f"steps: {steps} of {config.batch_size} clips = {processes} processes x {config.accumulation} accumulated x "
        f"{config.batch_size // share}, on {accelerator.device.type}, precision {accelerator.mixed_precision}"
    )
    states = state_bytes(pipe, bool(config.ema_decay)) / 1e9
    lines.append(f"memory of each process: about {states:.2f} GB for weights, gradients, optimizer and averages")
    try:
        activations = activation_bytes(pipe, config.batch_size // share) / 1e9
    except Exception as error:  # a user's own encoder may not run without data
        lines.append(f"and an unknown amount for activations ({type(error).__name__} without data)")
    else:
        lines.append(f"and {activations:.2f} GB for activations in float32")
    return "\n".join(lines)
