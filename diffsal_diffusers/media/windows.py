"""Clips around each frame of a stream that is read once."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class IndexedFrame(NamedTuple):
    """A frame of a stream: its number, its presentation time in seconds, and what is kept of it."""

    index: int
    time: float
    content: Any


class ClipWindow(NamedTuple):
    """The clip that a saliency map is predicted from.

    Args:
        frames: the clip's frames in order. Before the video's first frame and after its last one, these repeat, but
            for clips that are mirrored.
        wanted: the numbers of the frames that a video without ends would have given.
        target: the frame that the map is for.
        times: presentation times of the stream's frames after the previous window's target, this target's last.
    """

    frames: list[IndexedFrame]
    wanted: range
    target: IndexedFrame
    times: list[float]

    @property
    def frame_times(self) -> list[float]:
        """Times of the clip's frames in seconds. Where a frame stands in for others, before the first or after the
        last, time goes on at the pace of the two frames next to it: sound is heard there too. Not for clips that are
        mirrored, which have no sound."""
        shown = list({frame.index: frame.time for frame in self.frames}.items())
        if len(shown) < 2:
            return [frame.time for frame in self.frames]
        (first, begin), (second, time) = shown[:2]
        before = (time - begin) / (second - first)  # seconds a frame
        (second_last, time), (last, end) = shown[-2:]
        after = (end - time) / (last - second_last)
        return [
            frame.time + (index - frame.index) * (before if index < first else after)
            for frame, index in zip(self.frames, self.wanted, strict=True)
        ]


def clip_indices(target: int, num_frames: int, target_frame: int, interval: int, mirrored: bool = False) -> range:
    """The numbers of the frames of a target's clip, in a video without ends or, `mirrored`, without an end: there a
    clip that would begin before the first frame runs backwards instead, from the frames after the target to it."""
    first = target - target_frame * interval
    if mirrored and first < 0:
        first, interval = target + target_frame * interval, -interval
    return range(first, first + num_frames * interval, interval)


def clip_windows(
    frames: Iterable[tuple[float, Any]],
    num_frames: int,
    target_frame: int,
    stride: int = 1,
    interval: int = 1,
    mirrored: bool = False,
) -> Iterator[ClipWindow]:
    """Slides a window over a stream of (time, content): one clip for every `stride`-th frame, and for the last one.

    At most `num_frames` * `interval` + `stride` frames are held at a time, at the beginning twice as many where clips
    are mirrored.

    Args:
        frames: the stream.
        num_frames: frames in a clip.
        target_frame: place of the target in its clip, from 0.
        stride: frames from one target to the next.
        interval: frames from one frame of a clip to the next.
        mirrored: whether clips at the beginning run backwards, see [`clip_indices`].
    """
    held: deque[IndexedFrame] = deque()
    target, previous = 0, -1

    def indices(target: int) -> range:
        return clip_indices(target, num_frames, target_frame, interval, mirrored)

    def window(target: int) -> ClipWindow:
        first = held[0].index
        wanted = indices(target)
        clip = [held[min(max(i - first, 0), len(held) - 1)] for i in wanted]
        times = [frame.time for frame in held if previous < frame.index <= target]
        return ClipWindow(clip, wanted, held[target - first], times)

    for index, (time, content) in enumerate(frames):
        held.append(IndexedFrame(index, time, content))
        while index >= max(indices(target)):
            yield window(target)
            previous, target = target, target + stride
            # The stream may end anywhere: its last frame, the next one perhaps, is a target too.
            while held and held[0].index < previous + 1 - target_frame * interval:
                held.popleft()

    # The stream has ended: what is ahead of the remaining targets is its last frame.
    if not held:
        return
    last = held[-1].index
    while previous < last:
        target = min(target, last)
        yield window(target)
        previous, target = target, target + stride
