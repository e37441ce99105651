"""The `diffsal` command."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from diffusers.utils import logging
from torch.utils.flop_counter import FlopCounterMode

from . import __version__
from .encoders import list_audio_encoders, list_video_encoders
from .errors import InputError
from .media.video import find_sound, has_video, open_video
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

EXAMPLES = """\
examples:
  diffsal predict clip.mp4
  diffsal predict *.mp4 --output results --formats overlay,csv
"""
PREDICT_EXAMPLES = """\
formats, for a video clip.mp4:
  overlay   clip_overlay.mp4     heat over the video, with its sound
  heatmap   clip_saliency.mp4    the maps as grey video of 10 bits
  maps      clip_saliency/       the maps as PNG images of 16 bits: 00000.png, 00001.png, ...
  csv       clip_attention.csv   peak, centroid, spread and entropy of each map, in pixels of the video

examples:
  diffsal predict clip.mp4
  diffsal predict clip.mp4 --start 60 --duration 10 --formats overlay,maps --output results
  diffsal predict *.mp4 --model my_model --device cuda --dtype bfloat16 --scheduler dpm++ --steps 2
  diffsal predict frames/ --fps 24
"""


class Parser(argparse.ArgumentParser):
    """Shows examples as they are written, and says what is wrong in one line, without the usage."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        """Ends the program."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` tells more)\n")


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """The argument of --seed, as far as torch takes it."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to 2^64 - 1 is needed, got {text!r}")
    return int(text)


def not_negative(text: str) -> float:
    """An argument in seconds. A billion is thirty years, and what the clocks in media files can still count."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e9:
        raise argparse.ArgumentTypeError(f"a number from 0 to a billion is needed, got {text!r}")
    return number


def positive(text: str) -> float:
    """An argument in seconds, or per second."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, got {text!r}")
    return number


def formats(text: str) -> list[str]:
    """The argument of --formats."""
    names = text.split(",")
    for name in names:
        if name not in OUTPUTS:
            raise argparse.ArgumentTypeError(f"there is no format {name!r}; there are {', '.join(OUTPUTS)}")
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name} is there twice")
    return names


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="diffsal",
        description="Predicts where people look in a video with sound.",
        epilog=EXAMPLES + "\n`diffsal COMMAND --help` tells more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict",
        help="predict saliency maps of videos",
        description="Predicts a saliency map for every frame of each video, and writes the results into DIR.",
        epilog=PREDICT_EXAMPLES,
        usage="diffsal predict VIDEO [VIDEO ...] [options]",
    )
    predict.set_defaults(run=run_predict)
    predict.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file, or a folder of frames (and a .wav)")
    predict.add_argument("--output", type=Path, default=Path("saliency"), metavar="DIR", help="default: %(default)s")
    predict.add_argument(
        "--formats", type=formats, default=["overlay", "heatmap", "csv"], metavar="LIST",
        help="what to write, with commas between; default: overlay,heatmap,csv",
    )  # fmt: skip
    predict.add_argument("--start", type=not_negative, default=0.0, metavar="SECONDS", help="where to begin")
    predict.add_argument("--duration", type=positive, metavar="SECONDS", help="how much to predict; default: all")
    predict.add_argument("--no-audio", action="store_true", help="predict from the picture alone")
    predict.add_argument("--fps", type=positive, metavar="N", help="frame rate of a folder of frames; default: 25")
    _add_model_arguments(predict)
    predict.add_argument("--steps", type=positive_int, metavar="N", help="denoising steps; default: the model's own")
    samplers = f"{', '.join(SCHEDULERS)}; default: the model's own"
    predict.add_argument("--scheduler", choices=SCHEDULERS, metavar="NAME", help=samplers)
    ensemble = "average the maps from N different noises; default: %(default)s"
    predict.add_argument("--ensemble", type=positive_int, default=1, metavar="N", help=ensemble)
    predict.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise; default: %(default)s")
    stride = "faster: predict every N-th frame and interpolate between; default: %(default)s"
    predict.add_argument("--frame-stride", type=positive_int, default=1, metavar="N", help=stride)
    batch = "maps computed together; less needs less memory; default: %(default)s"
    predict.add_argument("--batch-size", type=positive_int, default=4, metavar="N", help=batch)
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    dtypes = f"{', '.join(DTYPES)}; default: %(default)s"
    predict.add_argument("--dtype", choices=DTYPES, default="float32", metavar="NAME", help=dtypes)

    info = commands.add_parser(
        "info",
        help="tell what a model is made of and what it costs",
        description="Tells a model's components, their parameters, and the operations of a clip and of a step.",
    )
    info.set_defaults(run=run_info)
    _add_model_arguments(info)

    encoders = commands.add_parser("encoders", help="list the video and audio encoders")
    encoders.set_defaults(run=run_encoders)
    schedulers = commands.add_parser("schedulers", help="list the samplers of --scheduler")
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
        torch.zeros(1, device=name).item()  # also refuses `meta`, which only pretends to compute
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name!r} cannot be used here; cpu always can") from error
    return torch.device(name)


def run_predict(args: argparse.Namespace) -> int:
    """`diffsal predict`: all videos, also when one of them is wrong."""
    outputs = plan_outputs(args.videos, args.output, args.formats)
    device = choose_device(args.device)
    pipe = load_model(args.model).to(device)
    if args.dtype != "float32":
        pipe.to(DTYPES[args.dtype])
    if args.scheduler:
        pipe.scheduler = create_scheduler(args.scheduler, pipe.scheduler.config)

    failed = 0
    for video, paths in zip(args.videos, outputs, strict=True):
        try:
            predict_video(pipe, video, paths, args)
        except Exception as error:  # one bad video must not cost the others
            print(f"diffsal: {explain(error, video)}", file=sys.stderr)
            failed += 1
        else:
            print(*paths.values(), sep="\n", flush=True)
    return 1 if failed else 0


def plan_outputs(videos: list[str], folder: Path, kinds: list[str]) -> list[dict[str, Path]]:
    """What each video is written to, by format.

    Raises:
        InputError: one result would overwrite another, or one of the videos.
    """
    sources = [Path(os.path.abspath(video)) for video in videos]
    names = [path.name if path.is_dir() else path.stem for path in sources]
    outputs = []
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two of the videos are called {name}, and their results would overwrite each other; "
                "give them to two runs with different --output folders"
            )
        outputs.append({kind: folder / OUTPUTS[kind].format(name) for kind in kinds})
        for path in outputs[-1].values():
            if Path(os.path.abspath(path)) in sources:
                raise InputError(f"{path} is one of the videos, and a result would overwrite it; use another --output")
    return outputs


def predict_video(pipe: DiffSalPipeline, video: str, paths: dict[str, Path], args: argparse.Namespace) -> None:
    """Predicts one video and writes its files."""
    # Without a terminal there is no bar: a log would hold each of its states.
    pipe.set_progress_bar_config(unit="map", desc=Path(video).name, dynamic_ncols=True, disable=None)
    part = {"fps": args.fps, "start": args.start, "duration": args.duration}
    if Path(video).is_file() and not has_video(video):
        raise InputError(
            f"{video} has no moving pictures; a video is needed (sound alone can be predicted from Python)"
        )
    with ExitStack() as stack:
        source = stack.enter_context(open_video(video, **part))
        maps = pipe.stream(
            video,
            audio=False if args.no_audio else None,
            num_inference_steps=args.steps,
            frame_stride=args.frame_stride,
            batch_size=args.batch_size,
            ensemble_size=args.ensemble,
            generator=torch.Generator().manual_seed(args.seed),
            **part,
        )
        stack.enter_context(closing(maps))  # ends the bar's line before an error is told
        writers = [
            stack.enter_context(make_writer(kind, path, video, source.info.pixel_aspect, args.start))
            for kind, path in paths.items()
        ]
        frames = iter(source) if "overlay" in paths else None
        for time, saliency in maps:
            pixels = next(frames).pixels if frames else None
            for writer in writers:
                writer.write(time, saliency, pixels)


def make_writer(kind: str, path: Path, video: str, pixel_aspect, start: float) -> FrameWriter:
    """The writer of one of the formats."""
    if kind == "overlay":
        return OverlayWriter(path, pixel_aspect=pixel_aspect, sound=find_sound(Path(video).resolve()), start=start)
    if kind == "heatmap":
        return HeatmapWriter(path, pixel_aspect=pixel_aspect, start=start)
    return MapsWriter(path) if kind == "maps" else AttentionWriter(path)


def count_operations(pipe: DiffSalPipeline) -> tuple[float, float]:
    """GFLOP (two operations for a multiply-add) of what is computed once a clip, and of one denoising step.

    Moves the pipeline to the device `meta`: nothing is computed there, and the attention is counted, which the counter
    misses on the CPU.
    """
    config = pipe.processor.config
    height, width = config.frame_size
    pipe.to("meta")
    with torch.no_grad(), torch.device("meta"):
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


def explain(error: Exception, where: str) -> str:
    """One sentence on what went wrong. What is no [`InputError`] is a disk, a device, or a model that misleads."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{where}: the memory is not enough; a smaller --batch-size needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or where}: {error.strerror}"
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps what libraries tell developers off the user's terminal; errors reach her as exceptions."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()  # of loading a folder; the maps have their own
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@contextmanager
def unwinding_signals() -> Iterator[None]:
    """A stop from outside unwinds the stack as Ctrl-C does, so that half-written files are removed."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in numbers:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(argv: list[str] | None = None) -> int:
    """Runs the command: 0 if all that was asked for was written, 1 for bad input, 2 for bad usage, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        with quiet_libraries(), unwinding_signals():
            return args.run(args)
    except KeyboardInterrupt:
        print("diffsal: interrupted; no half-written file was kept", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"diffsal: {explain(error, args.command)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
