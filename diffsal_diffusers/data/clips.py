"""Clips for training: what a pipeline sees around a frame, with where people looked at that frame."""

import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from torch.utils.data import Dataset, get_worker_info

from ..errors import InputError
from ..media.windows import ClipWindow, IndexedFrame, clip_indices
from ..processing import SaliencyProcessor
from .files import move_points
from .recording import Recording
from .registry import open_recording

logger = logging.get_logger(__name__)

NAMED = 4096  # messages that are remembered
WORKERS = 1024  # that count separately


class SaliencyClips(Dataset):
    """Clips around every `stride`-th frame of some videos.

    A clip is dated by its target frame. Frames, those that stand in before and after the video too, and log-mel slices
    are the processor's, as a pipeline takes them from the same file.

    Args:
        entries: rows of [`load_saliency_dataset`], streaming or not; they are small and are held in memory.
        processor: the pipeline's.
        stride: frames from one target to the next.
        strict: raise at a broken file; by default the next good clip takes the place of a broken one, the file is
            named in a warning once, and [`~SaliencyClips.report_skipped`] counts.

    Items:
        `frames` `(t, 3, height, width)`, uint8; `log_mel` `(1, slices, h, w)`, float32, zeros without sound;
        `has_audio`, boolean; `saliency` `(1, height, width)`, float32, from 0 to a maximum of one, all zero where
        nobody looked; `fixations` `(height, width)`, boolean, none where the data set has none; `video_id`,
        `dataset`, `frame_index` (from 0) and `fps`.

    Raises:
        InputError: there are no clips; with `strict`, or when an item is asked for and no clip is good: a file is
            broken.
    """

    def __init__(
        self, entries: Iterable[Mapping[str, Any]], processor: SaliencyProcessor, stride: int = 1, strict: bool = False
    ):
        if stride < 1:
            raise InputError(f"`stride` must be at least 1, got {stride}")
        self.entries = [dict(entry) for entry in entries]
        self.processor = processor
        self.stride = stride
        self.strict = strict
        # In shared memory, so that workers and the main process know and count together. A worker counts in a place
        # of its own: adding is no single step.
        self._skipped = torch.zeros(1 + WORKERS, dtype=torch.int64).share_memory_()
        self._named = torch.zeros(NAMED, dtype=torch.int64).share_memory_()
        self._ends = list(accumulate(-(-self._num_frames(entry) // stride) for entry in self.entries))
        if not len(self):
            raise InputError(f"there are no clips: none of the {len(self.entries)} videos has a frame to be read")
        self._broken = torch.zeros(len(self), dtype=torch.bool).share_memory_()
        self._opened: dict[int, tuple[int, Recording]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} clips; there is no clip {index}")
        index %= len(self)
        if self.strict:
            return self._read(index)
        error = None
        for place in self._good_from(index):
            try:
                item = self._read(place)
            except InputError as broken:
                error = broken
                self._broken[place] = True
                self._name_once(str(broken))
                continue
            if place != index:
                self._count()
            return item
        raise InputError(f"none of the {len(self)} clips can be read" + ("" if error is None else f"; {error}"))

    @property
    def skipped(self) -> int:
        """Items so far that another clip took the place of, and videos left out, in all processes together."""
        return int(self._skipped.sum())

    def report_skipped(self) -> int:
        """Logs, where there are any, and returns [`~SaliencyClips.skipped`]; for the end of an epoch."""
        if self.skipped:
            logger.warning(f"{self.skipped} clips were skipped because their files are broken")
        return self.skipped

    def _good_from(self, index: int) -> Iterable[int]:
        """The places of the clips not known to be broken, from `index` on and then from the first."""
        yield index
        for places in (range(index + 1, len(self)), range(index)):
            for place in places:
                if not self._broken[place]:
                    yield place

    def _num_frames(self, entry: Mapping[str, Any]) -> int:
        if entry["num_frames"] is not None:
            return entry["num_frames"]
        try:  # only the file tells
            return open_recording(entry).num_frames
        except InputError as error:
            if self.strict:
                raise
            self._name_once(str(error))
            self._count()
            return 0

    def _read(self, index: int) -> dict[str, Any]:
        place = bisect_right(self._ends, index)
        target = (index - (self._ends[place - 1] if place else 0)) * self.stride
        recording, config = self._recording(place), self.processor.config
        window = clip_window(recording, target, self.processor)
        frames = {frame.index: None for frame in window.frames}  # those that stand in for others are read once
        frames = {i: self.processor.preprocess_frame(recording.frame(i)) for i in frames}
        log_mel = torch.zeros(1, config.audio_slices, *config.audio_size)
        sound = recording.open_sound() if config.audio_slices else None
        if sound is not None:
            with sound:
                log_mel = self.processor.log_mel_slices(sound, [window.frame_times])[0]  # 1 t h w
        fixations = recording.fixations(target)
        size = tuple(config.frame_size)
        return {
            "frames": torch.stack([frames[frame.index] for frame in window.frames]),  # t 3 h w
            "log_mel": log_mel,
            "has_audio": sound is not None,
            "saliency": resize_density(recording.density(target), size)[None],
            "fixations": torch.zeros(size, dtype=torch.bool) if fixations is None else move_points(fixations, size),
            "video_id": recording.video_id,
            "dataset": recording.dataset,
            "frame_index": target,
            "fps": float(recording.fps),
        }

    def _recording(self, place: int) -> Recording:
        # By process: a forked worker must neither use what the main process opened nor, by dropping it, close it.
        opened = self._opened.get(os.getpid())
        if opened is None or opened[0] != place:
            opened = self._opened[os.getpid()] = place, open_recording(self.entries[place])
        return opened[1]

    def _name_once(self, message: str) -> None:
        key = zlib.crc32(message.encode()) + 1
        if self._named[key % NAMED] != key:
            self._named[key % NAMED] = key
            logger.warning(f"skipped: {message}")

    def _count(self) -> None:
        worker = get_worker_info()
        self._skipped[0 if worker is None else 1 + worker.id % WORKERS] += 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}


def clip_window(recording: Recording, target: int, processor: SaliencyProcessor) -> ClipWindow:
    """The clip around a frame of a recording: the one that [`~media.windows.clip_windows`] gives, without pixels.

    `processor` says how clips are taken.
    """
    wanted = clip_indices(target, **processor.clip_settings)
    indices = [min(max(i, 0), recording.num_frames - 1) for i in wanted]
    frames = [IndexedFrame(i, recording.frame_time(i), None) for i in indices]
    place = processor.config.target_frame
    return ClipWindow(frames, wanted, frames[place], [frames[place].time])


def resize_density(density: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A density `(h, w)` at another size, scaled to a maximum of one: `(height, width)`, float32 in [0, 1]."""
    resized = F.interpolate(density[None, None], size=size, mode="bilinear", antialias=True)[0, 0].clamp(min=0)
    largest = resized.max()
    return resized / largest if largest > 0 else torch.zeros_like(resized)
