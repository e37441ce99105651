"""Media files as FFmpeg reads them: opening, lengths, and decoding with times that pictures and sound share."""

import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av

from ..errors import InputError

SAME_TIME = 1e-6  # seconds: what adding and subtracting times in floating point may lose
MISSING_SOUND = 0.5  # seconds that may be undecodable before the file counts as damaged
# Containers whose header tells each stream's length. Others' is estimated, for instance from the bit rate.
TELL_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "flac"}


def is_folder(path: Path) -> bool:
    """Whether there is a folder at the path.

    Raises:
        InputError: the system cannot tell, as for a name that is too long.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a media file for reading.

    Raises:
        InputError: there is no such file, or FFmpeg cannot make sense of it.
    """
    if is_folder(path):
        raise InputError(f"{path} is a folder; a media file is expected")
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
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


def origin(container: av.container.InputContainer) -> float:
    """Seconds on the container's clock at which the media's time line begins."""
    return (container.start_time or 0) / av.time_base


def file_end(container: av.container.InputContainer, stream: av.stream.Stream) -> tuple[float | None, bool]:
    """When the stream ends, in seconds on the media's time line, and whether its header says so, or it is a guess."""
    told = container.format.name in TELL_LENGTH
    if container.format.name == "avi" and stream.type == "video" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate), told  # FFmpeg shortens the duration of a truncated AVI
    if stream.duration is not None:
        begin = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base) - origin(container)
        return begin + float(stream.duration * stream.time_base), told
    if container.duration is None:
        return None, False
    whole = container.duration / av.time_base
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, tag.groups())
        return min(hours * 3600 + minutes * 60 + seconds - origin(container), whole), told
    return whole, False


def read_packets(container: av.container.InputContainer, wanted: list[av.stream.Stream]) -> Iterator[av.packet.Packet]:
    """The packets of the streams wanted, in the file's order, the empty ones that end them included."""
    try:
        yield from container.demux(wanted)
    except IndexError:  # at the very end, PyAV stumbles over streams that first appeared after the beginning
        return


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
        begins = origin(container)
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
                container.seek(int((start + begins) / stream.time_base), stream=stream)
            for packet in read_packets(container, list(container.streams) if watch_all else [stream]):
                packet_time = last
                if packet.pts is not None:
                    packet_time = float(packet.pts * packet.time_base) - begins
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
                    time = last if frame.time is None else frame.time - begins
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
