"""`diffsal info`, `diffsal encoders` and `diffsal schedulers`: what there is, of what it is made, what it costs."""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..encoders import list_audio_encoders, list_video_encoders
from ..modeling import count_parameters
from ..pipelines import SalFoMPipeline, SaliencyPipeline
from ..schedulers import SCHEDULERS
from .common import add_model_argument, load_model


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """The commands' arguments."""
    info = commands.add_parser(
        "info",
        help="tell what a model is made of and what it costs",
        description="Tells a model's components, their parameters, and the operations of a clip and of a step.",
    )
    info.set_defaults(run=run_info)
    add_model_argument(info)

    encoders = commands.add_parser("encoders", help="list the video and audio encoders")
    encoders.set_defaults(run=run_encoders)
    schedulers = commands.add_parser("schedulers", help="list the samplers of --scheduler")
    schedulers.set_defaults(run=run_schedulers)


def count_operations(pipe: SaliencyPipeline) -> tuple[float, float]:
    """GFLOP (two operations for a multiply-add) of what is computed once a clip, and of one denoising step; none of
    the latter for a network that predicts in one pass.

    Moves the pipeline to the device `meta`: nothing is computed there, and the attention is counted, which the counter
    misses on the CPU.
    """
    config = pipe.processor.config
    height, width = config.frame_size
    pipe.to("meta")
    with torch.no_grad(), torch.device("meta"):
        if isinstance(pipe, SalFoMPipeline):
            with FlopCounterMode(display=False) as clip:
                pipe.salfom(torch.zeros(1, 3, config.num_frames, height, width))
            return clip.get_total_flops() / 1e9, 0.0
        with FlopCounterMode(display=False) as clip:
            video = audio = None
            if pipe.video_encoder is not None:
                video = pipe.video_encoder(torch.zeros(1, 3, config.num_frames, height, width)).features
            if pipe.audio_encoder is not None:
                audio = pipe.audio_encoder(torch.zeros(1, 1, config.audio_slices, *config.audio_size)).features[0]
            conditions = pipe.unet.encode_conditions(height, width, video, audio)
        with FlopCounterMode(display=False) as step:
            pipe.unet(torch.zeros(1, 1, height, width), 0, conditions=conditions)
    return clip.get_total_flops() / 1e9, step.get_total_flops() / 1e9


def run_info(args: argparse.Namespace) -> int:
    """`diffsal info`."""
    pipe = load_model(args.model)
    config = pipe.processor.config
    height, width = config.frame_size
    clip, step = count_operations(pipe)
    total = 0
    print(f"{args.model}: {type(pipe).__name__}")
    for name, component in (pipe.components | pipe.networks).items():
        size = ""
        if name in pipe.networks:
            parameters = count_parameters(component)
            total += parameters
            size = f"{parameters / 1e6:.2f} M parameters"
        kind = "-" if component is None else type(component).__name__
        print(f"  {name:14} {kind:28} {size}".rstrip())
    print(f"  {'total':14} {'':28} {total / 1e6:.2f} M parameters")
    apart = f", {config.frame_interval} apart" if config.frame_interval > 1 else ""
    print(f"input: clips of {config.num_frames} frames{apart}, resized to {height}x{width}")
    if step:
        print(f"operations: {clip:.2f} GFLOP once a clip, {step:.2f} GFLOP a denoising step")
        print(f"denoising steps by default: {pipe.config.default_num_inference_steps}")
    else:
        print(f"operations: {clip:.2f} GFLOP a clip")
    print(f"frames from one map to the next by default: {pipe.config.default_frame_stride}")
    return 0


def run_encoders(args: argparse.Namespace) -> int:
    """`diffsal encoders`."""
    names = ["timm/<model>" if name == "timm" else name for name in list_video_encoders()]
    print("video:", *names, sep="\n  ")
    print("audio:", *list_audio_encoders(), sep="\n  ")
    return 0


def run_schedulers(args: argparse.Namespace) -> int:
    """`diffsal schedulers`."""
    for name, scheduler in SCHEDULERS.items():
        print(f"{name:8} {scheduler.__name__}")
    return 0
