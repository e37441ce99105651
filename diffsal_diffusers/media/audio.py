"""Decoding of media files, for pictures and sound alike, and sound at 16 kHz mono on the media's time line."""

import math
import re
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import torch
import torchaudio

from ..errors import InputError

SAMPLE_RATE = 16000
SAME_TIME = 1e-6  # seconds: what adding and subtracting times in floating point may lose
JITTER = 0.05  # seconds by which the times in a file may be off without the sound being cut or parted
MISSING_SOUND = 0.5  # seconds that may be undecodable before the file counts as damaged
# Containers whose header tells each stream's length. Others' is estimated, for instance from the bit rate.
TELL_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "flac"}


# Files


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a media file for reading.

    Raises:
        InputError: there is no such file, or FFmpeg cannot make sense of it.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a media file is expected")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); a media file is expected")
    try:
        # An absolute path cannot be mistaken for a URL. Tags in old encodings are of no interest.
        container = av.open(str(path.resolve()), metadata_errors="replace")
    except (av.FFmpegError, OSError, UnicodeError) as error:
        raise InputError(
            f"{path} cannot be opened as video or sound: it is damaged, cut short before its index, "
            f"or not a media file ({getattr(error, 'strerror', error)})"
        ) from None
    if container.format.name == "tty":  # FFmpeg would play any .txt as a terminal session
        container.close()
        raise InputError(f"{path} cannot be opened as video or sound: it is a text file")
    return container


def streams(container: av.container.InputContainer, kind: Literal["video", "audio"]) -> list[av.stream.Stream]:
    """The streams of moving pictures (not the cover of a song) or of sound."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]


def find_stream(
    container: av.container.InputContainer, path: Path, kind: Literal["video", "audio"]
) -> av.stream.Stream:
    """The first video or audio stream.

    Raises:
        InputError: there is none, or FFmpeg has no decoder for it.
    """
    found = streams(container, kind)
    if not found:
        raise InputError(f"{path} has no {kind} stream; a file with {kind} is expected")
    if found[0].codec_context is None:
        raise InputError(f"{path}: FFmpeg has no decoder for its {kind} stream; convert it, for instance to MP4")
    return found[0]


def frame_rate(stream: av.video.stream.VideoStream) -> float:
    """Frames per second on average, 25 where the file does not tell."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def _origin(container: av.container.InputContainer) -> float:
    """Seconds on the container's clock at which the media's time line begins."""
    return (container.start_time or 0) / av.time_base


def _declared_end(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    if container.format.name == "avi" and stream.type == "video" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # FFmpeg shortens the duration of a truncated AVI
    if stream.duration is not None:
        begin = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base) - _origin(container)
        return begin + float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska
    if tag and container.duration is not None:
        hours, minutes, seconds = map(float, tag.groups())
        return min(hours * 3600 + minutes * 60 + seconds - _origin(container), container.duration / av.time_base)
    return None


def file_end(container: av.container.InputContainer, stream: av.stream.Stream) -> tuple[float | None, bool]:
    """When the stream ends, in seconds on the media's time line, and whether its header says so.

    Otherwise the end is an estimate, or None.
    """
    declared = _declared_end(container, stream)
    if declared is None and container.duration is not None:
        return container.duration / av.time_base, False
    return declared, declared is not None and container.format.name in TELL_LENGTH


class Decoded(NamedTuple):
    """A decoded frame of pictures or sound, from `time` to `end` in seconds on the media's time line."""

    time: float
    end: float
    frame: Any


def decode(
    path: Path, kind: Literal["video", "audio"], start: float = 0.0, end: float = math.inf
) -> Iterator[Decoded]:
    """Decodes a file's first video or audio stream, from a frame at or before `start` (seconds) on.

    Raises:
        InputError: the file turns out damaged, or stops early, before `end`.
    """
    # A seek may end behind its target, for instance in a transport stream: then it begins ever earlier.
    for back in (0.0, 2.0, 10.0, 60.0, math.inf):
        begin = max(start - back, 0.0)
        with closing(_decode_from(path, kind, begin, end)) as frames:
            first = next(frames, None)
            if begin == 0 or (first is not None and first.time <= start + SAME_TIME):
                if first is not None:
                    yield first
                yield from frames
                return


def _decode_from(path: Path, kind: Literal["video", "audio"], start: float, end: float) -> Iterator[Decoded]:
    """Decodes from near `start` on, maybe behind it. Nothing comes if a seek does not lead to a frame."""
    with open_container(path) as container:
        stream = find_stream(container, path, kind)
        stream.thread_type = "AUTO"
        origin = _origin(container)
        period = 1 / frame_rate(stream) if kind == "video" else 0.0
        missing_allowed = period / 2 if kind == "video" else MISSING_SOUND
        early = max(0.5, 3 * period)
        declared, certain = file_end(container, stream)
        # Where the header tells the length of the file only, the file is cut short if all its streams end before it.
        watch_all = not certain and container.duration is not None and container.format.name in TELL_LENGTH
        reach: dict[int, float] = {}  # end of each stream's packets
        lost: list[float] = []  # times of packets that could not be decoded
        last, decoded, damage = start, False, None  # last: end of what was decoded

        try:
            if start > 0:
                container.seek(int((start + origin) / stream.time_base), stream=stream)
            for packet in container.demux([s for s in container.streams if watch_all or s is stream]):
                packet_time = last
                if packet.pts is not None:
                    packet_time = float(packet.pts * packet.time_base) - origin
                    packet_end = packet_time + float((packet.duration or 0) * packet.time_base)
                    reach[packet.stream_index] = max(reach.get(packet.stream_index, 0.0), packet_end)
                if packet.stream_index != stream.index:
                    continue
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    lost.append(packet_time)  # harmless before the first key frame, or if no frame is missing then
                    continue
                for frame in frames:
                    if frame.time is None and start > 0 and not decoded:
                        return  # behind a seek, a frame without a time could be any
                    time = last if frame.time is None else frame.time - origin
                    if kind == "audio":
                        length = frame.samples / frame.sample_rate
                    else:
                        length = float((frame.duration or 0) * stream.time_base) or period
                    if decoded and time - last > missing_allowed and any(last - length < t < time for t in lost):
                        raise av.error.InvalidDataError(0, "frames are missing")
                    lost = [t for t in lost if t > time]
                    last = max(last, time + length) if decoded else time + length
                    decoded = True
                    yield Decoded(time, time + length, frame)
            length_of_file = container.duration / av.time_base if watch_all else 0.0
            short = length_of_file - max(reach.values(), default=0.0) > early
            stops = max(declared if certain else 0.0, reach.get(stream.index, 0.0), length_of_file if short else 0.0)
            damage = ("stops" if decoded else "cannot be decoded") if min(stops, end) - last > early else None
        except av.FFmpegError:
            damage = "cannot be decoded" if last + missing_allowed < end else None
        if damage and (decoded or start == 0):
            raise InputError(
                f"{path}: the {kind} {damage} at {last:.2f} s, so the file is damaged or cut short; "
                "--start and --duration can select a good part"
            )


# Sound


class AudioSource:
    """Sound at 16 kHz mono, read forward. Only what the latest read began with, and what follows, is held."""

    def __init__(self) -> None:
        self._blocks: Iterator[tuple[int, np.ndarray]] | None = None
        self._held: deque[tuple[int, np.ndarray]] = deque()  # number of the first sample, samples
        self._first: float = -math.inf  # of the latest read
        self._sound_end = 0  # number of the sample after the last one known
        self._finished = False
        self._damage: InputError | None = None

    def read(self, first: int, last: int) -> torch.Tensor:
        """The samples `first` to `last` - 1; sample 0 is at 0 s of the media. Silence where there is no sound.

        Args:
            first: may be negative, but never less than in an earlier read.
            last: not less than `first`.

        Returns:
            float32 `(last - first,)`, in [-1, 1].

        Raises:
            ValueError: `first` is less than in an earlier read, or more than `last`.
            InputError: the file is damaged before `last`.
        """
        if first < self._first or last < first:
            raise ValueError(
                f"samples {first} to {last} cannot be read: reading goes forward and has passed {self._first}"
            )
        self._first = first
        while self._held and self._held[0][0] + len(self._held[0][1]) <= first:
            self._held.popleft()
        while self._sound_end < last and not self._finished:
            self._pull(first)
        if self._damage and last > self._sound_end + MISSING_SOUND * SAMPLE_RATE:
            raise self._damage

        waveform = np.zeros(last - first, np.float32)
        for position, samples in self._held:
            begin, end = max(position, first), min(position + len(samples), last)
            if begin < end:
                waveform[begin - first : end - first] = samples[begin - position : end - position]
        return torch.from_numpy(waveform)

    def _pull(self, first: int) -> None:
        if self._blocks is None:
            self._blocks = self._read_blocks(first)
        try:
            position, samples = next(self._blocks)
        except StopIteration:
            self._finished = True
            return
        except InputError as damage:  # only matters to who reads that far
            self._finished, self._damage = True, damage
            return
        overlap = max(self._sound_end - position, 0)
        position, samples = position + overlap, samples[overlap:]
        if len(samples):
            self._sound_end = position + len(samples)
            if self._sound_end > first:
                self._held.append((position, samples))

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of samples, each with the number of its first, in order, those before `first` not needed."""
        raise NotImplementedError

    def end(self) -> float:
        """Seconds on the media's time line at which the sound ends."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file; nothing can be read then."""
        self._first = math.inf
        self._held.clear()
        if self._blocks is not None:
            self._blocks.close()

    def __enter__(self) -> "AudioSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_audio(
    source: str | Path | np.ndarray | torch.Tensor | tuple[np.ndarray | torch.Tensor, int],
    *,
    sample_rate: int | None = None,
) -> AudioSource:
    """Opens sound. A first read far into a file seeks there.

    Args:
        source: a media file of any kind that FFmpeg reads, or a waveform `(samples,)` or `(channels, samples)`,
            floating point in [-1, 1] or int16; also as a tuple of the waveform and its sample rate.
        sample_rate: samples per second of a waveform. A file has its own.

    Raises:
        InputError: the source cannot be read, has no sound, or its values, shape or rate are wrong. A damaged file
            raises when the reading gets there.
    """
    if isinstance(source, str | Path):
        if sample_rate is not None:
            raise InputError(f"sample_rate: {source} is a file and has its own; leave sample_rate out")
        return _SoundFile(Path(source))
    if isinstance(source, tuple) and len(source) == 2 and sample_rate is None:
        source, sample_rate = source
    if not isinstance(source, np.ndarray | torch.Tensor):
        raise InputError(
            "sound is a file, or a waveform as a NumPy array or torch tensor with its sample rate, "
            f"not {type(source).__name__}"
        )
    return _Waveform(source, sample_rate)


class _SoundFile(AudioSource):
    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        with open_container(path) as container:
            find_stream(container, path, "audio")

    def end(self) -> float:
        with open_container(self._path) as container:
            stream = find_stream(container, self._path, "audio")
            end, certain = file_end(container, stream)
            if certain:
                return end
            try:
                packets = (packet for packet in container.demux(stream) if packet.pts is not None)
                last = max(((packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets), default=0)
            except av.FFmpegError as error:
                raise InputError(f"{self._path}: the sound cannot be read to its end ({error.strerror})") from None
            return max(float(last) - _origin(container), 0.0)

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        # Codecs need some of what comes before to get the first samples right.
        start = first / SAMPLE_RATE - 1 if first > 10 * SAMPLE_RATE else 0.0
        resampler, resampled, fed_end, position = None, None, 0.0, 0
        for time, _, frame in decode(self._path, "audio", start):
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            if resampler is None or kind != resampled or abs(time - fed_end) > JITTER:
                if resampler is not None:
                    yield position, self._resample(resampler, None)
                # A mix of channels keeps within [-1, 1]: of two, it is the mean.
                resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE, options={"rematrix_maxval": 1})
                resampled, fed_end, position = kind, time, round(time * SAMPLE_RATE)
            samples = self._resample(resampler, frame)
            yield position, samples
            position += len(samples)
            fed_end += frame.samples / frame.sample_rate
        if resampler is not None:
            yield position, self._resample(resampler, None)

    def _resample(self, resampler: av.AudioResampler, frame: av.AudioFrame | None) -> np.ndarray:
        try:
            # Without conversion, None comes back as it is.
            blocks = [block.to_ndarray()[0] for block in resampler.resample(frame) if block is not None]
        except (av.FFmpegError, ValueError) as error:
            raise InputError(
                f"{self._path}: its sound cannot be mixed to one channel at {SAMPLE_RATE} Hz ({error}); "
                "convert it to stereo"
            ) from None
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class _Waveform(AudioSource):
    def __init__(self, source: np.ndarray | torch.Tensor, sample_rate: int | None):
        super().__init__()
        shape = tuple(source.shape)
        if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > shape[1]):
            raise InputError(f"the waveform has shape {shape}; (samples,) or (channels, samples) is expected")
        if not isinstance(sample_rate, int | np.integer) or sample_rate <= 0:
            raise InputError(f"sample_rate: a waveform needs its rate, a positive integer in Hz, got {sample_rate!r}")
        sample_rate = int(sample_rate)
        if sample_rate * SAMPLE_RATE // math.gcd(sample_rate, SAMPLE_RATE) ** 2 > 2**25:  # size of the kernel
            raise InputError(
                f"sample_rate: {sample_rate} Hz has too complicated a ratio to {SAMPLE_RATE} Hz; "
                "resample the waveform, for instance to 48000 Hz"
            )
        if str(source.dtype).removeprefix("torch.") not in ("int16", "float16", "bfloat16", "float32", "float64"):
            raise InputError(f"the waveform has dtype {source.dtype}; int16, or floats in [-1, 1], is expected")
        if isinstance(source, np.ndarray):
            waveform = torch.from_numpy(source.astype(np.float32, order="C"))
        else:
            waveform = source.detach().to("cpu", torch.float32)
        if "int16" in str(source.dtype):
            waveform = waveform / 2**15
        peak = waveform.abs().max()
        if not peak <= 1.5:  # also refuses NaN
            raise InputError(
                f"the waveform has values up to {peak:g}; floats are expected in [-1, 1] (for 16-bit values: int16)"
            )
        mono = waveform if waveform.ndim == 1 else waveform.mean(0)
        self._samples = torchaudio.functional.resample(mono, sample_rate, SAMPLE_RATE).numpy()

    def end(self) -> float:
        return len(self._samples) / SAMPLE_RATE

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self._samples
