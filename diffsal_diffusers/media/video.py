"""Video frames with their presentation times, one at a time, from files, folders, lists and arrays."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import av
import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import InputError
from .container import (
    SAME_TIME,
    Decoded,
    decode,
    file_end,
    find_stream,
    frame_rate,
    is_folder,
    open_container,
    streams,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
DEFAULT_FPS = 25.0


class Frame(NamedTuple):
    """A video frame.

    Args:
        time: presentation time in seconds; 0 is where the file begins, for its pictures and its sound alike.
        pixels: `(height, width, 3)`, uint8, RGB, upright.
    """

    time: float
    pixels: np.ndarray


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video before it is read.

    Args:
        width, height: pixels of the upright frames, as stored: not stretched by `pixel_aspect`.
        frame_rate: frames per second, on average.
        num_frames: an estimate of the frames in the selected part, or None.
        duration: seconds of the selected part as far as the container tells, or None.
        pixel_aspect: width by height of one pixel of the upright frames.
    """

    width: int
    height: int
    frame_rate: float
    num_frames: int | None
    duration: float | None
    pixel_aspect: Fraction


class VideoSource:
    """Frames in the order of their times, which increase strictly. Each iteration reads the source anew."""

    info: VideoInfo

    def __init__(self) -> None:
        self._running: WeakSet = WeakSet()

    def __iter__(self) -> Iterator[Frame]:
        frames = self._frames()
        self._running.add(frames)
        return frames

    def _frames(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Ends running iterations and closes their files."""
        for frames in list(self._running):
            frames.close()

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(
    source: str | Path | Sequence[Image.Image] | np.ndarray | torch.Tensor,
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
) -> VideoSource:
    """Opens a video, whole or a part of it.

    Args:
        source: a media file of any kind that FFmpeg reads; a folder of images, in the natural order of their names;
            a list of PIL images; a NumPy array `(frames, height, width, 3)` or a torch tensor
            `(frames, 3, height, width)`, either uint8 or floating point in [0, 1].
        fps: frames per second of a folder, list or array (default 25). A file has its own times.
        start: seconds; only frames from this time on are given. Their times stay those of the whole video.
        duration: seconds from `start` on; by default up to the end.

    Raises:
        InputError: the source cannot be read, has no picture in the selected part, or an argument is out of range.
            A damaged file or image raises when the reading gets there.
    """
    _require_seconds("start", start, minimum_excluded=False)
    if duration is not None:
        _require_seconds("duration", duration)
    if fps is not None:
        _require_seconds("fps", fps)
    end = math.inf if duration is None else start + duration

    if isinstance(source, str | Path) and not is_folder(Path(source)):
        if fps is not None:
            raise InputError(f"fps: {source} is a file and has its own frame times; leave fps out")
        return _VideoFile(Path(source), start, end)
    if isinstance(source, str | Path):
        name, count, load = str(source), *_folder(Path(source))
    elif isinstance(source, np.ndarray | torch.Tensor):
        name, count, load = "the array", *_array(source)
    elif isinstance(source, list | tuple):
        name, count, load = "the list", *_image_list(source)
    else:
        raise InputError(
            "a video is a file, a folder of images, a list of PIL images, a NumPy array or a torch tensor, "
            f"not {type(source).__name__}"
        )
    return _Images(name, count, load, DEFAULT_FPS if fps is None else float(fps), start, end)


def has_video(path: str | Path) -> bool:
    """Whether a media file has moving pictures; the cover of a song does not count.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_container(Path(path)) as container:
        return bool(streams(container, "video"))


def find_sound(source: Any) -> Path | None:
    """The file with a video's sound: the video file itself, or the only .wav in a folder of frames; None if neither.

    Raises:
        InputError: the file cannot be opened, or the folder has several .wav files.
    """
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    if is_folder(path):
        sounds = sorted(file for file in path.glob("[!.]*") if file.suffix.lower() == ".wav")
        if len(sounds) > 1:
            raise InputError(
                f"{path} has {len(sounds)} .wav files, and its sound could be any of them: keep one, or name the sound"
            )
        return sounds[0] if sounds else None
    with open_container(path) as container:
        return path if streams(container, "audio") else None


def _require_seconds(name: str, value: Any, minimum_excluded: bool = True) -> None:
    # A billion seconds, thirty years, is what the clocks in media files can still count.
    allowed = "a number above 0, at most a billion," if minimum_excluded else "a number from 0 to a billion"
    valid = isinstance(value, Real) and 0 <= value <= 1e9 and (value > 0 or not minimum_excluded)
    if not valid:
        raise InputError(f"{name}: {allowed} is expected, got {value!r}")


# Files


def _is_turned(matrix: list[int]) -> bool:
    return abs(matrix[1]) > abs(matrix[0])


def _upright(pixels: np.ndarray, matrix: list[int]) -> np.ndarray:
    """Applies a display matrix (a, b, _, c, d, ...), which takes x, y to a x + c y, b x + d y, in quarter turns."""
    a, b, _, c, d = matrix[:5]
    if _is_turned(matrix):
        pixels, horizontal, vertical = pixels.swapaxes(0, 1), c, b
    else:
        horizontal, vertical = a, d
    return pixels[:: -1 if vertical < 0 else 1, :: -1 if horizontal < 0 else 1]


class _VideoFile(VideoSource):
    def __init__(self, path: Path, start: float, end: float):
        super().__init__()
        self._path, self._start, self._end = path, start, end
        with open_container(path) as container:
            stream = find_stream(container, path, "video")
            rate, count, aspect = frame_rate(stream), stream.frames, stream.sample_aspect_ratio or Fraction(1)
            total, _ = file_end(container, stream)
        self._period = 1 / rate
        first = next(self._selected(), None)
        if first is None:
            length = "" if total is None else f" of {total:.2f} s"
            raise InputError(
                f"{path}: the video{length} has no frame in the selected part, which begins at {start:g} s"
            )
        self._size = first.frame.width, first.frame.height
        matrix = first.frame.side_data.get("DISPLAYMATRIX")
        self._matrix = [1, 0, 0, 0, 1] if matrix is None else np.frombuffer(bytes(matrix), np.int32).tolist()
        turned = _is_turned(self._matrix)
        duration = None if total is None else max(min(total, end) - start, 0.0)
        estimate = None if duration is None else max(1, round(duration * rate))
        self.info = VideoInfo(
            width=self._size[turned],
            height=self._size[not turned],
            frame_rate=rate,
            num_frames=count if count and duration == total else estimate,
            duration=duration,
            pixel_aspect=1 / aspect if turned else aspect,
        )

    def _selected(self) -> Iterator[Decoded]:
        previous = -math.inf
        for decoded in decode(self._path, "video", self._start, self._end):
            # Some files repeat or swap times; a frame is shown after the one before it all the same.
            time = decoded.time if decoded.time > previous + SAME_TIME else previous + self._period
            previous = time
            if time >= self._end - SAME_TIME:
                return
            if time >= self._start - SAME_TIME:
                yield decoded._replace(time=time)

    def _frames(self) -> Iterator[Frame]:
        width, height = self._size
        for time, _, frame in self._selected():
            try:
                pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            except av.FFmpegError as error:
                raise InputError(
                    f"{self._path}: the frame at {time:.2f} s, {frame.format.name}, cannot be converted to RGB "
                    f"({error.strerror})"
                ) from None
            yield Frame(time, np.ascontiguousarray(_upright(pixels, self._matrix)))


# Folders, lists and arrays


class _Images(VideoSource):
    """`count` images at a constant rate; `load` gives the pixels of one and the name to report it by."""

    def __init__(self, source: str, count: int, load: "Load", fps: float, start: float, end: float):
        super().__init__()
        first, last = (math.ceil(min(time * fps, count) - SAME_TIME) for time in (start, end))
        if first >= last:
            raise InputError(
                f"{source} has no frame in the selected part, which begins at {start:g} s; "
                f"its {count} frames at {fps:g} per second end at {count / fps:.2f} s"
            )
        self._indices, self._load, self._fps = range(first, last), load, fps
        height, width, _ = load(first)[0].shape
        self.info = VideoInfo(width, height, fps, last - first, (last - first) / fps, Fraction(1))

    def _frames(self) -> Iterator[Frame]:
        expected = self.info.height, self.info.width, 3
        for index in self._indices:
            pixels, name = self._load(index)
            if pixels.shape != expected:
                raise InputError(
                    f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels but the first image has "
                    f"{self.info.width}x{self.info.height}; all frames need one size"
                )
            yield Frame(index / self._fps, pixels)


Load = Callable[[int], tuple[np.ndarray, str]]


def _folder(folder: Path) -> tuple[int, Load]:
    def natural(file: Path) -> list:
        parts = re.split(r"([0-9]+)", file.name)  # every second one is a number
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    images = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    files = sorted((file for file in images if not file.name.startswith(".")), key=natural)
    if not files:
        raise InputError(f"{folder} holds no images; a folder of frames has {', '.join(IMAGE_SUFFIXES)} files")

    def load(index: int) -> tuple[np.ndarray, str]:
        name = str(files[index])
        try:
            with Image.open(files[index]) as image:
                image.load()
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InputError(f"{name} cannot be read as an image: it is damaged or cut short ({error})") from None
        return image_pixels(image, name), name

    return len(files), load


def _image_list(images: Sequence[Image.Image]) -> tuple[int, Load]:
    if not images:
        raise InputError("the list is empty; a list of PIL images is expected")
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise InputError(
                f"item {index} of the list is of type {type(image).__name__}; PIL images are expected "
                "(stack arrays to (frames, height, width, 3))"
            )

    def load(index: int) -> tuple[np.ndarray, str]:
        return image_pixels(images[index], f"image {index} of the list"), f"image {index} of the list"

    return len(images), load


def image_pixels(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of an image, upright: `(h, w, 3)`, uint8 RGB.

    Raises:
        InputError: it has 32-bit pixels.
    """
    if image.mode in ("I", "F"):
        raise InputError(f"{name} has 32-bit pixels of unknown range; images of 8 or 16 bits are expected")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _array(array: np.ndarray | torch.Tensor) -> tuple[int, Load]:
    if isinstance(array, np.ndarray):
        kind, layout, channel_axis = "NumPy array", "(frames, height, width, 3)", 3
        floating, integer = np.issubdtype(array.dtype, np.floating), array.dtype == np.uint8
    else:
        kind, layout, channel_axis = "torch tensor", "(frames, 3, height, width)", 1
        array = array.detach()
        floating, integer = array.is_floating_point(), array.dtype == torch.uint8
    shape = tuple(array.shape)
    if len(shape) != 4 or shape[channel_axis] != 3 or 0 in shape:
        raise InputError(f"the {kind} has shape {shape}; a video as a {kind} has {layout}, none of them 0")
    if not floating and not integer:
        raise InputError(f"the {kind} has dtype {array.dtype}; uint8, or floating point in [0, 1], is expected")
    if floating and not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
        raise InputError(
            f"the {kind} has values from {float(array.min()):g} to {float(array.max()):g}; "
            "floating point pixels are expected in [0, 1] (0 to 255 as uint8)"
        )

    def load(index: int) -> tuple[np.ndarray, str]:
        pixels = array[index]
        if isinstance(pixels, torch.Tensor):
            pixels = pixels.movedim(0, -1).to("cpu", torch.float32 if floating else torch.uint8).numpy()
        if floating:
            pixels = np.rint(pixels.astype(np.float32) * 255)
        return np.array(pixels, np.uint8, order="C"), f"frame {index} of the {kind}"

    return len(array), load
