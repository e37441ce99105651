"""Recordings that lie on disk: folders of frames, video files, still images that a camera moves over."""

import copy
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from ..errors import InputError
from ..media.audio import SAMPLE_RATE, AudioSource, open_audio
from ..media.container import SAME_TIME, find_stream, frame_rate, open_container, origin, read_packets
from ..media.video import Frame, find_sound, open_video
from .density import fixation_density
from .files import (
    FileSequence,
    changed_at,
    count_points,
    media_name,
    move_points,
    points_columns,
    read_fixations,
    read_map,
    read_map_size,
    read_picture,
    read_points,
)
from .recording import Recording
from .synthetic import SyntheticScene

logger = logging.get_logger(__name__)

SKIPPED_AHEAD = 30  # frames that are decoded and left out rather than sought
WRITTEN_TIME = 5e-4  # seconds by which times in tables are off where they are written in milliseconds
MAX_ZOOM = 1.25
PAN, ZOOM_CHANGE = 0.4, 0.1  # how far a still image's camera moves: share of the room it has; factor


class FileRecording(Recording):
    """What recordings on disk share: the ground truth, from maps or else made from fixations.

    Args:
        entry: a row of [`load_saliency_dataset`].
        num_frames, fps: where the row does not tell.
    """

    def __init__(self, entry: Mapping[str, Any], num_frames: int | None = None, fps: float | None = None):
        num_frames = entry["num_frames"] if num_frames is None else num_frames
        super().__init__(entry["dataset"], entry["video_id"], num_frames, entry["fps"] if fps is None else fps)
        self.sigma = entry["sigma"]
        self.maps, self.fixation_files = (
            None if entry[kind] is None else FileSequence(entry[kind], entry[f"{kind}_name"], entry["first_number"])
            for kind in ("maps", "fixations")
        )

    def density(self, index: int) -> torch.Tensor:
        self._require_frame(index)
        if self.maps is not None:
            return read_map(self.maps.path(index))
        counts = self._looks(index)
        return fixation_density(counts, self.sigma * counts.shape[1])

    def fixations(self, index: int) -> torch.Tensor | None:
        self._require_frame(index)
        looks = self._looks(index)
        if looks is None or self.maps is None:
            return None if looks is None else looks > 0
        return move_points(looks > 0, read_map_size(self.maps.path(index)))

    def _looks(self, index: int) -> torch.Tensor | None:
        """How many looked at each pixel, or, boolean, whether anybody did; `None` where that is not known."""
        return None if self.fixation_files is None else read_fixations(self.fixation_files.path(index))

    def _require_frame(self, index: int) -> None:
        if not 0 <= index < self.num_frames:
            raise IndexError(f"{self.video_id} has {self.num_frames} frames, numbered from 0; there is no {index}")


class FrameFolder(FileRecording):
    """A folder of numbered images, with or without a sound file."""

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.frames = FileSequence(entry["frames"], entry["frames_name"], entry["first_number"])
        self.audio = entry["audio"]

    def media(self) -> dict[str, Any]:
        """See [`Recording.media`].

        Raises:
            InputError: a frame is missing in the middle: the maps of all later frames would be those of others.
        """
        names = FileSequence(self.frames.folder).files()
        for index in range(min(self.num_frames, len(names))):
            if names[index] != self.frames.path(index).name:
                raise InputError(
                    f"{self.frames.path(index)} is expected as image {index + 1} of its folder, which has "
                    f"{names[index]} there: a frame is missing, or an image does not belong"
                )
        return {"video": self.frames.folder, "audio": False if self.audio is None else self.audio, "fps": self.fps}

    def frame(self, index: int) -> np.ndarray:
        self._require_frame(index)
        return read_picture(self.frames.path(index))

    def open_sound(self) -> AudioSource | None:
        return None if self.audio is None else open_audio(self.audio)


class VideoFile(FileRecording):
    """A video file with maps, or with fixations in a table.

    Frames are those that a pipeline gets from the file, in order, at the times that the file tells. Frames asked for
    one after another are decoded only once; a step back, or far ahead, seeks.

    Raises:
        InputError: the file cannot be read, or has another number of frames than the folder of its maps.
    """

    def __init__(self, entry: Mapping[str, Any]):
        self.path = entry["video"]
        self.points = entry["points"]
        self.times = frame_times(self.path)
        with open_container(Path(self.path)) as container:
            rate = frame_rate(find_stream(container, Path(self.path), "video"))
        num_frames = len(self.times) if entry["num_frames"] is None else entry["num_frames"]
        super().__init__(entry, num_frames, rate)
        natural = self.maps is not None and self.maps.name is None
        if (natural and len(self.times) != num_frames) or len(self.times) < num_frames:
            raise InputError(
                f"{self.path} has {len(self.times)} frames, but {self.maps.folder} has maps for {num_frames}; "
                "one map a frame is expected"
            )
        self._running: Iterator[Frame] | None = None
        self._next = 0

    def media(self) -> dict[str, Any]:
        audio = None if find_sound(self.path) is not None else False
        return {"video": self.path, "audio": audio, "fps": None}

    def frame(self, index: int) -> np.ndarray:
        self._require_frame(index)
        try:
            if self._running is None or not 0 <= index - self._next <= SKIPPED_AHEAD:
                self.close()
                start = float(self.times[index - 1 : index + 1].mean()) if index else 0.0
                self._running, self._next = iter(open_video(self.path, start=start)), index
            frame = None
            while self._next <= index:
                frame = next(self._running, None)
                self._next += 1
            if frame is None or np.abs(self.times - frame.time).argmin() != index:
                raise InputError(
                    f"{self.path}: the frame at {self.times[index]:.2f} s cannot be decoded: the file is damaged"
                )
        except InputError:
            self.close()  # what lies behind the damage may be good
            raise
        return frame.pixels

    def frame_time(self, index: int) -> float:
        return float(self.times[index])

    def open_sound(self) -> AudioSource | None:
        sound = find_sound(self.path)
        return None if sound is None else open_audio(sound)

    def close(self) -> None:
        """Closes the file, which is opened again when a frame is asked for."""
        if self._running is not None:
            self._running.close()
        self._running = None

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        info = open_video(self.path).info
        return info.height, info.width

    def _looks(self, index: int) -> torch.Tensor | None:
        if self.fixation_files is not None or self.points is None:
            return super()._looks(index)
        frames, points = self._placed_points
        begin, end = np.searchsorted(frames, [index, index + 1])
        return count_points(points[begin:end], self.size)

    @property
    def dropped_points(self) -> int:
        """Points of the table that are not in the picture or not during the video."""
        return len(self._table) - len(self._placed_points[0])

    @cached_property
    def _table(self) -> np.ndarray:
        """`(n, 3)`: x, y and number of the frame of all points of this video."""
        by_frame = "frame" in points_columns(Path(self.points))
        points = read_points(self.points, "video", ("x", "y", "frame" if by_frame else "time_s")).get(self.video_id)
        if points is None:
            raise InputError(f"{self.points} has no rows of the video {self.video_id}")
        if by_frame:
            if (points[:, 2] % 1 > 0).any():
                raise InputError(f"{self.points}: {self.video_id} has a `frame` that is no whole number")
            return points
        times, when = self.times, points[:, 2]
        shown = np.searchsorted(times, when + WRITTEN_TIME, side="right") - 1.0
        # The last frame is shown as long as the others are.
        shown[~(when < times[-1] + 1 / self.fps)] = np.nan
        return np.column_stack([points[:, :2], shown])

    @cached_property
    def _placed_points(self) -> tuple[np.ndarray, np.ndarray]:
        """The points in the picture, in order of their frames: numbers of the frames `(n,)`, x and y `(n, 2)`."""
        height, width = self.size
        x, y, frame = self._table.T
        valid = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (frame >= 0) & (frame < self.num_frames)
        kept = self._table[valid]
        kept = kept[np.argsort(kept[:, 2], kind="stable")]
        if not valid.all():
            logger.warning(
                f"{self.points}: {(~valid).sum()} of the {len(valid)} fixations of {self.video_id} are dropped, not "
                f"in the picture of {width}x{height} pixels or not in frames 0 to {self.num_frames - 1}"
            )
        return kept[:, 2], kept[:, :2]


class StillImage(FileRecording):
    """A clip made of one image: a camera pans and zooms over it slowly, and the fixations move along.

    The camera's path follows from the image's name, so it is the same every time.

    Args:
        entry: a row of [`load_saliency_dataset`] with the columns `video` (the image) and `points` (a table with the
            columns image, x and y, in pixels of a picture that is `points_width` wide, and perhaps observer).
        moving: otherwise the camera stands still and shows the whole image.
        voiced: the clip has the sound of a synthetic scene, which has nothing to do with the picture.
    """

    points_width = 800

    def __init__(self, entry: Mapping[str, Any], moving: bool = True, voiced: bool = False):
        super().__init__(entry)
        self.path = entry["video"]
        self.points = entry["points"]
        self.moving = moving
        self.voiced = voiced

    def media(self) -> dict[str, Any]:
        frames = np.stack([self.frame(i) for i in range(self.num_frames)])  # t h w 3
        return {"video": frames, "audio": (self._voice, SAMPLE_RATE) if self.voiced else False, "fps": self.fps}

    def frame(self, index: int) -> np.ndarray:
        left, top, zoom = self.camera(index)
        height, width = self.picture.shape[:2]
        box = (left, top, min(left + width / zoom, width), min(top + height / zoom, height))
        image = Image.fromarray(self.picture)
        return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))

    def open_sound(self) -> AudioSource | None:
        return open_audio((self._voice, SAMPLE_RATE)) if self.voiced else None

    @property
    def _voice(self) -> torch.Tensor:
        return SyntheticScene(zlib.crc32(self.video_id.encode()), self.num_frames, self.fps).waveform

    def density(self, index: int) -> torch.Tensor:
        counts = self._looks(index)
        return fixation_density(counts, self.sigma * counts.shape[1] * self.camera(index)[2])

    def camera(self, index: int) -> tuple[float, float, float]:
        """Where the camera is: left and top of what it shows in pixels of the image, and its zoom, at least 1."""
        self._require_frame(index)
        if not self.moving:
            return 0.0, 0.0, 1.0
        rng = np.random.default_rng(zlib.crc32(self.video_id.encode()))
        begin = np.array([rng.uniform(1, MAX_ZOOM), rng.uniform(), rng.uniform()])
        change = rng.uniform(-1, 1, 3) * (ZOOM_CHANGE, PAN, PAN)
        end = np.clip(begin + change, (1, 0, 0), (MAX_ZOOM, 1, 1))
        passed = index / max(self.num_frames - 1, 1)  # one at the last frame, which then is exactly at the end
        zoom, across, down = begin + (end - begin) * passed
        height, width = self.picture.shape[:2]
        return across * (width - width / zoom), down * (height - height / zoom), zoom

    @cached_property
    def picture(self) -> np.ndarray:
        """The whole image, `(height, width, 3)`, uint8 RGB."""
        return read_picture(Path(self.path))

    @cached_property
    def still_points(self) -> np.ndarray:
        """The fixations in pixels of the image: `(n, 2)`, x and y."""
        return self._columns("x", "y") * self.picture.shape[1] / self.points_width

    def halves(self) -> tuple["StillImage", "StillImage"] | None:
        if "observer" not in points_columns(Path(self.points)):
            return None
        observer = self._columns("observer")[:, 0]
        everybody = np.unique(observer[observer >= 0])
        halves = copy.copy(self), copy.copy(self)
        for half, first in zip(halves, (0, 1), strict=True):
            half.still_points = self.still_points[np.isin(observer, everybody[first::2])]
        return halves if len(everybody) > 1 else None

    def _columns(self, *columns: str) -> np.ndarray:
        """This image's rows of the table, `(n, columns)`, float64."""
        rows = read_points(self.points, "image", columns).get(media_name(Path(self.path).name))
        if rows is None:
            raise InputError(f"{self.points} has no rows of the image {Path(self.path).name}")
        return rows

    def _looks(self, index: int) -> torch.Tensor:
        left, top, zoom = self.camera(index)
        height, width = self.picture.shape[:2]
        points = (self.still_points - (left, top)) * zoom
        inside = (points >= 0).all(axis=1) & (points < (width, height)).all(axis=1)
        return count_points(points[inside], (height, width))


def frame_times(path: str | Path) -> np.ndarray:
    """When each frame of a video file is shown, in seconds of the media: `(frames,)`, float64, without decoding where
    the file tells the times.

    Raises:
        InputError: the file cannot be read.
    """
    return _frame_times(str(path), changed_at(path))


@lru_cache(maxsize=1024)
def _frame_times(path: str, changed: int) -> np.ndarray:
    times = []
    with open_container(Path(path)) as container:
        stream = find_stream(container, Path(path), "video")
        begins = origin(container)
        try:
            for packet in read_packets(container, [stream]):
                if packet.size and not packet.is_discard:
                    times.append(None if packet.pts is None else float(packet.pts * packet.time_base) - begins)
        except av.FFmpegError as error:
            raise InputError(f"{path} cannot be read to its end: it is damaged ({error.strerror})") from None
    times = None if None in times else sorted(time for time in times if time >= -SAME_TIME)
    if not times or min(np.diff(times), default=1.0) <= SAME_TIME:  # some files tell no times, or repeat them
        times = [frame.time for frame in open_video(path)]
    return np.array(times)
