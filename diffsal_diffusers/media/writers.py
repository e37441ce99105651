"""Saliency maps to files, frame by frame: heat over the video, grey video, 16-bit images, a table of attention.

Every writer is a context manager. What it wrote appears under its final name when the `with` ends well, and does not
appear at all when it ends by an exception, a full disk or Ctrl-C:

    with OverlayWriter("clip_overlay.mp4", sound="clip.mp4") as overlay, AttentionWriter("clip.csv") as table:
        for time, saliency, frame in frames:
            overlay.write(time, saliency, frame)
            table.write(time, saliency)

Times are seconds on the media's time line: presentation times minus the start time of the container.
"""

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from ..errors import InputError
from .attention import AttentionStatistics, attention_statistics

# The usual clock of video: whole for the common frame rates and fine enough for variable ones.
CLOCK_RATE = 90_000

# Codecs that players expect in an mp4: their packets are copied as they are.
COPIED_SOUND = {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}

BT709 = 1  # the code that H.264 gives to BT.709's primaries, transfer curve and matrix alike


def _heat_tables() -> np.ndarray:
    """What becomes of a sample of the video: `(3, 65536)`, for Y, Cb and Cr, at 256 * level of saliency + sample.

    The colours run from purple to yellow with even steps of lightness (nine points of matplotlib's plasma), so that
    more salient always looks brighter, also without colour vision. They are given in BT.709's Y, Cb, Cr, limited
    range: blending commutes with the linear conversion, and 4:2:0 has half the samples of RGB.
    """
    points = ["0d0887", "4c02a1", "7e03a8", "a92395", "cc4778", "e56b5d", "f89540", "fdc527", "f0f921"]
    level = np.linspace(0, 1, 256)
    anchors = np.array([list(bytes.fromhex(point)) for point in points]) / 255
    red, green, blue = (np.interp(level, np.linspace(0, 1, len(points)), channel) for channel in anchors.T)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    heat = np.stack([16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748])
    # Steep, to show second places of interest too; the last factor leaves the video alone where hardly anybody looks.
    opacity = np.round(256 * 0.75 * level * (2 - level) * np.minimum(level / 0.1, 1))
    kept, added = (256 - opacity)[:, None] * np.arange(256), np.round(opacity * heat)[:, :, None]
    return ((kept + added) // 256).astype(np.uint8).reshape(3, -1)


HEATED = _heat_tables()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of the system and of FFmpeg into an [`InputError`] that names the file and the reason."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def complete_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder to; it takes the name `path` when the `with` ends well.

    The temporary path has the name of `path`, in a hidden folder next to it: on the same disk, so that taking the
    name is one atomic step. An exception, KeyboardInterrupt included, removes it and leaves what was at `path`.
    Missing parents of `path` are created.

    Raises:
        InputError: `path` is a folder that holds anything but the numbered PNG files of a [`MapsWriter`].
        OSError: the folder cannot be created or written.
    """
    path = Path(path)
    with suppress(FileExistsError):  # of a file in the folder's place, the next step says "not a directory"
        path.parent.mkdir(parents=True)
    _refuse_other_folder(path)
    folder = Path(tempfile.mkdtemp(prefix=".diffsal-", dir=path.parent))
    try:
        yield folder / path.name
        if path.is_dir():  # a folder that holds something cannot be replaced in one step
            _refuse_other_folder(path)
            replaced = path.rename(folder / f"replaced-{path.name}")
            try:
                os.replace(folder / path.name, path)
            except BaseException:
                replaced.rename(path)
                raise
        else:
            os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_other_folder(path: Path) -> None:
    if path.is_dir() and not all(re.fullmatch(r"\d{5,}\.png", entry.name) for entry in path.iterdir()):
        raise InputError(f"cannot replace the folder {path}: it holds files other than numbered PNG images")


class FrameWriter:
    """Base of the writers: a subclass opens, writes and finishes one file or folder at a temporary path.

    An earlier output of the same name is replaced once the new one is complete.

    Raises:
        InputError: on entering, writing or leaving the `with`: the file cannot be written (folder, rights, full
            disk), or no frame was written at all.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.frames = 0  # written so far

    def __enter__(self):
        with writing(self.path), ExitStack() as resources:
            self._open(resources.enter_context(complete_path(self.path)), resources)
            self._resources = resources.pop_all()
        return self

    def write(self, time: float, saliency: np.ndarray, frame: np.ndarray | None = None) -> None:
        """Write the next frame.

        Args:
            time: presentation time in seconds on the media's time line, later than the last one.
            saliency: `(height, width)` float in [0, 1].
            frame: `(height, width, 3)` uint8 RGB, upright; only an [`OverlayWriter`] looks at it.
        """
        if saliency.ndim != 2 or saliency.size == 0 or not (saliency.min() >= 0 and saliency.max() <= 1):
            raise InputError(f"a saliency map to write to {self.path} must be (height, width) with values in [0, 1]")
        with writing(self.path):
            self._write(time, saliency, frame)
        self.frames += 1

    def __exit__(self, kind, error, traceback):
        if error is not None:
            with suppress(OSError, av.FFmpegError):  # the first error is the one to tell
                self._resources.__exit__(kind, error, traceback)
            return
        with writing(self.path), self._resources:
            if not self.frames:
                raise InputError(f"there is no frame to write to {self.path}")
            self._finish()

    def _open(self, temporary: Path, resources: ExitStack) -> None:
        raise NotImplementedError

    def _write(self, time: float, saliency: np.ndarray, frame: np.ndarray | None) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        pass


class MapsWriter(FrameWriter):
    """A folder of 16-bit grey PNG images `00000.png`, `00001.png`, ..., each value round(65535 * saliency)."""

    def _open(self, temporary, resources):
        self._folder = temporary
        temporary.mkdir()

    def _write(self, time, saliency, frame):
        image = Image.fromarray(np.round(65535 * saliency).astype(np.uint16))
        image.save(self._folder / f"{self.frames:05d}.png", compress_level=1)


class AttentionWriter(FrameWriter):
    """A CSV table, one row a frame: its number from 0, its time, and its [`AttentionStatistics`]."""

    def _open(self, temporary, resources):
        file = resources.enter_context(open(temporary, "w", newline="", encoding="ascii"))
        self._table = csv.writer(file, lineterminator="\n")
        self._table.writerow(["frame", "time_s", *AttentionStatistics._fields])

    def _write(self, time, saliency, frame):
        peak_x, peak_y, *others = attention_statistics(saliency)
        values = [f"{peak_x:.0f}", f"{peak_y:.0f}", *(f"{value:.4f}" for value in others)]
        self._table.writerow([self.frames, f"{time:.6f}", *values])


class VideoWriter(FrameWriter):
    """Base of the writers of H.264 in mp4, at the presentation times given, evenly spaced or not.

    Args:
        path: where the video appears.
        pixel_aspect: width of a pixel over its height.
        start: where the clip was cut out of the media, in seconds. At 0 the output has the media's own time line,
            otherwise its zero is the first frame's time.
    """

    pixel_format: str
    color_range: ColorRange
    encoder_options: dict[str, str]

    def __init__(self, path: str | Path, pixel_aspect: Fraction = Fraction(1), start: float = 0.0):
        super().__init__(path)
        self.pixel_aspect = pixel_aspect
        self.start = start

    def _open(self, temporary, resources):
        self._container = av.open(str(temporary), "w", format="mp4", container_options={"movflags": "+faststart"})
        resources.enter_context(self._container)

    def _start(self, time: float, picture: av.VideoFrame) -> None:
        """Set up what depends on the first frame."""
        self._origin = time if self.start > 0 else 0.0
        # Without B-frames, frames are stored in the order and at the times at which they are shown: the last one keeps
        # its duration at variable frame rates, and players that ignore edit lists start the picture with the sound.
        self._stream = self._container.add_stream("libx264", options={**self.encoder_options, "bf": "0"})
        encoder = self._stream.codec_context
        encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, self.pixel_format
        encoder.time_base = Fraction(1, CLOCK_RATE)
        encoder.sample_aspect_ratio = self.pixel_aspect
        encoder.color_range = self.color_range
        encoder.color_primaries = encoder.color_trc = encoder.colorspace = BT709
        self._pts = None
        self._duration = CLOCK_RATE // 25  # of a video of a single frame; otherwise the last interval is repeated

    def _encode(self, time: float, picture: av.VideoFrame) -> None:
        if self.frames == 0:
            self._start(time, picture)
        size = self._stream.codec_context.width, self._stream.codec_context.height
        if (picture.width, picture.height) != size:
            raise InputError(f"the frames for {self.path} change their size from {size} at {time:.3f} s")
        pts = round((time - self._origin) * CLOCK_RATE)
        if self._pts is not None:
            self._duration = pts - self._pts
        if self._duration <= 0:
            raise InputError(f"the frame times for {self.path} must increase, and do not at {time:.3f} s")
        self._pts = picture.pts = pts
        picture.time_base = Fraction(1, CLOCK_RATE)
        self._mux_video(picture)

    def _mux_video(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            packet.duration = self._duration  # mp4 stores the last one, the others follow from the times
            self._container.mux(packet)

    def _finish(self):
        self._mux_video(None)


class HeatmapWriter(VideoWriter):
    """The maps as 10-bit grey video: luma round(1023 * saliency), full range, at the exact size of the maps.

    H.264 High 10, monochrome (4:0:0), nearly lossless. FFmpeg's decoder gives it as yuv420p10le with neutral chroma.
    """

    pixel_format = "gray10le"
    color_range = ColorRange.JPEG
    # Tuned for the smallest error instead of the best look, and to be fast: `veryfast` makes smaller files, in twice
    # the time.
    encoder_options = {"crf": "4", "preset": "ultrafast", "tune": "psnr"}

    def _write(self, time, saliency, frame):
        luma = np.round(1023 * saliency).astype(np.uint16)
        self._encode(time, av.VideoFrame.from_ndarray(luma, format=self.pixel_format))


class OverlayWriter(VideoWriter):
    """Heat over the video, to look at: the more salient, the brighter and the more opaque.

    For this display only, every map is stretched from its own minimum to its own maximum: the most salient point of
    each frame is at full heat, also where the map is faint. A flat map leaves the frame as it is.

    The frames are 8-bit RGB and written as BT.709, 4:2:0. That needs even sizes: an odd width or height repeats its
    last column or row, so that nothing is lost and pixels keep their coordinates.

    Args:
        path: where the video appears.
        sound: a media file whose first sound track goes with the picture, to the end of the last frame; one without
            sound gives a silent overlay. It is copied as it is where mp4 takes its codec, else it becomes AAC, mono
            or stereo. It is read bit by bit as the frames come.
        pixel_aspect, start: as of every [`VideoWriter`]; the sound is cut and shifted with the picture.
    """

    pixel_format = "yuv420p"
    color_range = ColorRange.MPEG
    encoder_options = {"crf": "22", "preset": "ultrafast"}

    def __init__(
        self,
        path: str | Path,
        sound: str | Path | None = None,
        pixel_aspect: Fraction = Fraction(1),
        start: float = 0.0,
    ):
        super().__init__(path, pixel_aspect, start)
        self.sound = sound

    def _open(self, temporary, resources):
        super()._open(temporary, resources)
        self._source = None
        if self.sound is not None:
            with _reading_sound(self.sound):
                # An absolute path cannot be mistaken for a URL. A tag in a wrong encoding is no reason to stop.
                path = str(Path(self.sound).resolve())
                self._source = resources.enter_context(av.open(path, metadata_errors="ignore"))

    def _start(self, time, picture):
        super()._start(time, picture)
        self._sound_packets = iter(())
        if self._source is not None and self._source.streams.audio:
            stream = self._source.streams.audio[0]
            if stream.codec_context is None:
                raise InputError(f"cannot read the sound of {self.sound}: FFmpeg has no decoder for its codec")
            target = _add_sound_stream(self._container, stream)
            self._sound_packets = _shifted_packets(stream, target, self._origin, self.sound)
        self._sound_packet = next(self._sound_packets, None)

    def _write(self, time, saliency, frame):
        if frame is None or frame.dtype != np.uint8 or frame.shape != (*saliency.shape, 3):
            raise InputError(f"the overlay {self.path} needs each frame as uint8 RGB of its map's size")
        low, high = saliency.min(), saliency.max()
        level = np.round((saliency - low) / ((high - low) or 1) * 255).astype(np.uint16) << 8
        height, width = level.shape
        if height % 2 or width % 2:
            level = np.pad(level, [(0, height % 2), (0, width % 2)], mode="edge")
            frame = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(
            format=self.pixel_format, dst_colorspace=Colorspace.ITU709, dst_color_range=self.color_range
        )
        levels = (level, level[::2, ::2], level[::2, ::2])
        for plane, table, level in zip(picture.planes, HEATED, levels, strict=True):
            pixels = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            pixels[...] = table.take(level | pixels)
        self._encode(time, picture)
        self._mux_sound(Fraction(self._pts, CLOCK_RATE))

    def _mux_sound(self, until: Fraction) -> None:
        """Write the sound up to the picture, so that neither waits for the other in memory."""
        while self._sound_packet is not None and sum(_span(self._sound_packet)) <= until:
            self._container.mux(self._sound_packet)
            self._sound_packet = next(self._sound_packets, None)

    def _finish(self):
        end = Fraction(self._pts + self._duration, CLOCK_RATE)
        self._mux_sound(end)
        packet = self._sound_packet
        if packet is not None and (begin := _span(packet)[0]) < end:
            packet.duration = round((end - begin) / packet.time_base)
            self._container.mux(packet)
        super()._finish()


@contextmanager
def _reading_sound(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError, ValueError) as error:  # ValueError: PyAV on a format that changes half-way
        raise InputError(f"cannot read the sound of {path}: {getattr(error, 'strerror', None) or error}") from error


def _span(packet: av.Packet | av.AudioFrame) -> tuple[Fraction, Fraction]:
    """Begin and duration, in seconds."""
    return packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base


def _add_sound_stream(container: OutputContainer, stream: AudioStream) -> AudioStream:
    """Add a stream for the packets of `stream`, or for AAC made of them where an mp4 does not take its codec."""
    if stream.codec_context.codec.canonical_name in COPIED_SOUND:
        return container.add_stream_from_template(stream)
    rate = stream.rate if stream.rate in av.Codec("aac", "w").audio_rates else 48_000
    return container.add_stream("aac", rate=rate, layout="mono" if stream.channels == 1 else "stereo")


def _shifted_packets(stream: AudioStream, target: AudioStream, origin: float, path: str | Path) -> Iterator[av.Packet]:
    """The packets of `stream` from `origin` seconds on, timed from there, copied or re-encoded for `target`.

    The first may begin before zero: mp4's edit list makes players skip that part.
    """
    container = stream.container
    zero = Fraction(container.start_time or 0, av.time_base) + Fraction(origin)
    copied = target.codec_context.codec.id == stream.codec_context.codec.id
    with _reading_sound(path):
        if origin > 1:  # seeking is rough in some formats, and what comes before zero is left out below
            container.seek(int((zero - 1) * av.time_base))
        for packet in container.demux(stream):
            for part in [packet] if copied else packet.decode():
                if part.pts is None:  # the empty packet at the end
                    continue
                part.pts -= round(zero / part.time_base)
                begin, duration = _span(part)
                # A decoder needs one packet before the first that is heard.
                if begin + (2 if copied else 1) * duration <= 0:
                    continue
                if copied:
                    part.dts = part.pts
                    part.stream = target
                    yield part
                else:
                    yield from target.encode(part)
        if not copied:
            yield from target.encode()
