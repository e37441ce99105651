"""`diffsal predict`: saliency maps of videos, as files."""

import argparse
import ctypes
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..media.video import find_sound, has_video, open_video
from ..media.writers import AttentionWriter, FrameWriter, HeatmapWriter, MapsWriter, OverlayWriter
from ..pipelines import SaliencyPipeline
from .common import (
    add_inference_arguments,
    add_model_argument,
    explain,
    not_negative,
    positive,
    positive_int,
    prepare_model,
)

OUTPUTS = {
    "overlay": "{}_overlay.mp4",
    "heatmap": "{}_saliency.mp4",
    "maps": "{}_saliency",
    "csv": "{}_attention.csv",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
WAITING_MAPS = 16  # that are predicted and not yet written: 60 MB at 1280x720
EXAMPLES = """\
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


def formats(text: str) -> list[str]:
    """The argument of --formats."""
    names = text.split(",")
    for name in names:
        if name not in OUTPUTS:
            raise argparse.ArgumentTypeError(f"there is no format {name!r}; there are {', '.join(OUTPUTS)}")
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name} is there twice")
    return names


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    predict = commands.add_parser(
        "predict",
        help="predict saliency maps of videos",
        description="Predicts a saliency map for every frame of each video, and writes the results into DIR.",
        epilog=EXAMPLES,
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
    add_model_argument(predict)
    add_inference_arguments(predict)
    stride = "faster: predict every N-th frame and interpolate between; default: the model's own"
    predict.add_argument("--frame-stride", type=positive_int, metavar="N", help=stride)


def run_predict(args: argparse.Namespace) -> int:
    """`diffsal predict`: all videos, also when one of them is wrong."""
    outputs = plan_outputs(args.videos, args.output, args.formats)
    keep_memory()
    pipe = prepare_model(args)
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


def keep_memory() -> None:
    """Makes the C library keep the memory of arrays that come and go with every frame.

    glibc asks the system for each array of megabytes and gives it back, so that for every frame all pages are new and
    cleared, which takes longer than much of the work on them. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, or none
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(M_MMAP_THRESHOLD, 2**25):  # the most that it takes, where addresses have 64 bits
                mallopt(M_TRIM_THRESHOLD, 2**28)


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


def predict_video(pipe: SaliencyPipeline, video: str, paths: dict[str, Path], args: argparse.Namespace) -> None:
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
        frames = iter(source)

        def write(writer: FrameWriter, time: float, saliency: np.ndarray) -> None:
            pixels = None
            if isinstance(writer, OverlayWriter):  # it alone looks at the video's frames, and reads them once more
                frame = next(frames, None)
                if frame is None:
                    raise InputError(f"{video} ended early when it was read again: it has changed meanwhile")
                pixels = frame.pixels
            writer.write(time, saliency, pixels)

        # Frames are written while the next maps are predicted, each format in a thread of its own.
        threads = [ThreadPoolExecutor(max_workers=1) for _ in writers]
        for thread in threads:
            stack.callback(end, thread)
        waiting = deque()
        for time, saliency in maps:
            waiting.append([t.submit(write, w, time, saliency) for t, w in zip(threads, writers, strict=True)])
            while waiting and (len(waiting) > WAITING_MAPS or all(written.done() for written in waiting[0])):
                for written in waiting.popleft():
                    written.result()
        for written in chain.from_iterable(waiting):
            written.result()


def end(thread: ThreadPoolExecutor) -> None:
    """Waits for the frame that is being written, also where Ctrl-C is pressed again: nobody must close its file."""
    while True:
        try:
            return thread.shutdown(cancel_futures=True)
        except (KeyboardInterrupt, SystemExit):
            continue


def make_writer(kind: str, path: Path, video: str, pixel_aspect, start: float) -> FrameWriter:
    """The writer of one of the formats."""
    if kind == "overlay":
        return OverlayWriter(path, pixel_aspect=pixel_aspect, sound=find_sound(Path(video).resolve()), start=start)
    if kind == "heatmap":
        return HeatmapWriter(path, pixel_aspect=pixel_aspect, start=start)
    return MapsWriter(path) if kind == "maps" else AttentionWriter(path)
