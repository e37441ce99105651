"""The `diffsal` command."""

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from .encoders import list_audio_encoders, list_video_encoders
from .errors import InputError
from .media.video import find_sound, open_video
from .media.writers import AttentionWriter, FrameWriter, HeatmapWriter, MapsWriter, OverlayWriter
from .pipelines import DiffSalPipeline
from .presets import DEFAULT_MODEL, UNTRAINED_MODELS, load_pipeline
from .schedulers import SCHEDULERS, create_scheduler

OUTPUTS = {
    "overlay": "{}_overlay.mp4",
    "heatmap": "{}_saliency.mp4",
    "maps": "{}_saliency",
    "csv": "{}_attention.csv",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def formats(text: str) -> list[str]:
    """The argument of --formats."""
    names = text.split(",")
    for name in names:
        if name not in OUTPUTS:
            raise argparse.ArgumentTypeError(f"there is no format {name!r}; there are {', '.join(OUTPUTS)}")
    return names


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="diffsal", description="Predicts where people look in a video with sound.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict",
        help="saliency maps of videos",
        description="Predicts a saliency map for every frame of each video and writes what --formats names.",
        epilog="Example: diffsal predict clip.mp4 --output results --formats overlay,maps",
    )
    predict.set_defaults(run=run_predict)
    predict.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file, or a folder of frames (and a .wav)")
    predict.add_argument("--output", type=Path, default=Path("saliency"), metavar="DIR", help="default: %(default)s")
    _add_model_arguments(predict)
    predict.add_argument("--steps", type=positive_int, metavar="N", help="denoising steps; default: the model's own")
    predict.add_argument("--scheduler", choices=SCHEDULERS, help="sampler; default: the model's own")
    predict.add_argument(
        "--frame-stride", type=positive_int, default=1, metavar="N",
        help="predict every N-th frame and interpolate between; default: %(default)s",
    )  # fmt: skip
    predict.add_argument("--batch-size", type=positive_int, default=4, metavar="N", help="default: %(default)s")
    predict.add_argument("--ensemble", type=positive_int, default=1, metavar="N", help="noise maps to average a frame")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    predict.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    predict.add_argument("--seed", type=int, default=0, help="of the noise; default: %(default)s")
    predict.add_argument("--no-audio", action="store_true", help="ignore the sound")
    predict.add_argument(
        "--formats", type=formats, default=["overlay", "heatmap", "csv"], metavar="LIST",
        help="any of overlay (heat over the video), heatmap (10-bit grey video), maps (16-bit PNGs), csv (peak, "
        "centroid, spread and entropy of each frame), with commas between; default: overlay,heatmap,csv",
    )  # fmt: skip
    predict.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="where to begin")
    predict.add_argument("--duration", type=float, metavar="SECONDS", help="how much to predict; default: all")
    predict.add_argument("--fps", type=float, help="frame rate of a folder of frames; default: 25")

    info = commands.add_parser("info", help="what a model is made of and what it costs")
    info.set_defaults(run=run_info)
    _add_model_arguments(info)

    encoders = commands.add_parser("encoders", help="list the video and audio encoders")
    encoders.set_defaults(run=run_encoders)
    schedulers = commands.add_parser("schedulers", help="list the samplers")
    schedulers.set_defaults(run=run_schedulers)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME_OR_FOLDER",
        help=f"a model's folder, or one of {', '.join(UNTRAINED_MODELS)}; default: %(default)s",
    )  # fmt: skip


def load_model(name: str) -> DiffSalPipeline:
    """The model of --model, with a word on the untrained ones."""
    pipe = load_pipeline(name)
    if name in UNTRAINED_MODELS:
        print(
            f"note: {name} is UNTRAINED: its weights are random, and its maps show that the program works, "
            "not where people look",
            file=sys.stderr,
        )
    return pipe


def choose_device(name: str) -> torch.device:
    """The device of --device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here; cpu always can") from error
    return torch.device(name)


def run_predict(args: argparse.Namespace) -> int:
    """`diffsal predict`: all videos, also when one of them is wrong."""
    names = [Path(os.path.abspath(video)).stem for video in args.videos]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two of the videos are called {name}: their results would overwrite each other")
    device = choose_device(args.device)
    pipe = load_model(args.model).to(device)
    if args.dtype != "float32":
        pipe.to(DTYPES[args.dtype])
    if args.scheduler:
        pipe.scheduler = create_scheduler(args.scheduler, pipe.scheduler.config)

    failed = 0
    for video, name in zip(args.videos, names, strict=True):
        try:
            written = predict_video(pipe, video, name, args)
        except InputError as error:
            print(f"diffsal: {error}", file=sys.stderr)
            failed += 1
        else:
            print("\n".join(str(path) for path in written))
    return 1 if failed else 0


def predict_video(pipe: DiffSalPipeline, video: str, name: str, args: argparse.Namespace) -> list[Path]:
    """Predicts one video and writes its files; returns their paths."""
    pipe.set_progress_bar_config(unit="map", desc=name, dynamic_ncols=True)
    maps = pipe.stream(
        video,
        audio=False if args.no_audio else None,
        num_inference_steps=args.steps,
        frame_stride=args.frame_stride,
        batch_size=args.batch_size,
        ensemble_size=args.ensemble,
        generator=torch.Generator().manual_seed(args.seed),
        fps=args.fps,
        start=args.start,
        duration=args.duration,
    )
    with ExitStack() as stack:
        writers, frames = [], None
        source = stack.enter_context(open_video(video, fps=args.fps, start=args.start, duration=args.duration))
        for kind in args.formats:
            path = args.output / OUTPUTS[kind].format(name)
            writers.append(stack.enter_context(make_writer(kind, path, video, source.info.pixel_aspect, args.start)))
        if "overlay" in args.formats:
            frames = iter(source)
        for time, saliency in maps:
            pixels = next(frames).pixels if frames else None
            for writer in writers:
                writer.write(time, saliency, pixels)
    return [writer.path for writer in writers]


def make_writer(kind: str, path: Path, video: str, pixel_aspect, start: float) -> FrameWriter:
    """The writer of one of the formats."""
    if kind == "overlay":
        return OverlayWriter(path, pixel_aspect=pixel_aspect, sound=find_sound(video), start=start)
    if kind == "heatmap":
        return HeatmapWriter(path, pixel_aspect=pixel_aspect, start=start)
    return MapsWriter(path) if kind == "maps" else AttentionWriter(path)


def count_operations(pipe: DiffSalPipeline) -> tuple[float, float]:
    """GFLOP (two operations for a multiply-add) of what is computed once a clip, and of one denoising step."""
    config = pipe.processor.config
    height, width = config.frame_size
    with torch.no_grad():
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
    for name, component in pipe.components.items():
        size = ""
        if isinstance(component, torch.nn.Module):
            total += component.num_parameters()
            size = f"{component.num_parameters() / 1e6:.2f} M parameters"
        kind = "-" if component is None else type(component).__name__
        print(f"  {name:14} {kind:28} {size}".rstrip())
    print(f"  {'total':14} {'':28} {total / 1e6:.2f} M parameters")
    print(f"input: clips of {config.num_frames} frames, resized to {height}x{width}")
    print(f"operations: {clip:.2f} GFLOP once a clip, {step:.2f} GFLOP a denoising step")
    print(f"denoising steps by default: {pipe.config.default_num_inference_steps}")
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


def main(argv: list[str] | None = None) -> int:
    """Runs the command: 0 if everything asked for was written, 1 for wrong input, 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    diffusers.utils.logging.disable_progress_bar()  # of loading a folder; the maps have their own
    # A stop from outside unwinds the stack as Ctrl-C does, so that half-written files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return args.run(args)
    except InputError as error:
        print(f"diffsal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("diffsal: interrupted; no half-written file was kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
