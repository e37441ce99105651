"""What a video with ground truth is to training and evaluation, whatever disk layout or generator it comes from."""

from typing import Any

import numpy as np
import torch

from ..media.audio import AudioSource


class Recording:
    """One video and where people looked in it. Nothing is read, or computed, before it is asked for.

    Args:
        dataset: name of the data set.
        video_id: name of the video, unique in its data set.
        num_frames: frames of the video.
        fps: frames per second; of a file whose frames are not evenly spaced, on average.

    Frames are counted from 0. The ground truth of a frame may be of another size than the frame.
    """

    def __init__(self, dataset: str, video_id: str, num_frames: int, fps: float):
        self.dataset = dataset
        self.video_id = video_id
        self.num_frames = num_frames
        self.fps = fps

    def media(self) -> dict[str, Any]:
        """The arguments `video`, `audio` and `fps` of a pipeline's call that predict the whole video."""
        raise NotImplementedError

    def frame(self, index: int) -> np.ndarray:
        """One frame, `(height, width, 3)`, uint8 RGB.

        Raises:
            InputError: the frame is missing or damaged.
        """
        raise NotImplementedError

    def frame_time(self, index: int) -> float:
        """When a frame is shown, in seconds of the media: evenly spaced, unless a file tells its own times."""
        return index / self.fps

    def open_sound(self) -> AudioSource | None:
        """The video's sound, to be closed after use; `None` where it has none.

        Raises:
            InputError: the file of the sound is missing or damaged.
        """
        raise NotImplementedError

    def density(self, index: int) -> torch.Tensor:
        """The saliency map of one frame: how many looked where, `(height, width)`, float32, 0 or more, of any sum.

        Raises:
            InputError: it is missing or damaged.
        """
        raise NotImplementedError

    def fixations(self, index: int) -> torch.Tensor | None:
        """The fixated pixels of one frame, `(height, width)`, boolean, of the density's size; `None` where there are
        none in the data set.

        Raises:
            InputError: they are missing or damaged.
        """
        raise NotImplementedError

    def halves(self) -> tuple["Recording", "Recording"] | None:
        """The same video as each half of its observers looked at it; `None` where the data do not tell who looked."""
        return None
