"""Media files for tests, whose pictures and sound tell where they belong.

Picture `index` (see `picture`): the left half red, the right half green above, and below eight strips, black or
white, that are the bits of `index`: `frame_index` reads it back from a decoded frame, `is_upright` tells wrong turns.

Sound at `t` seconds of the media (see `tone_bursts`): 0.1 s of a 1 kHz tone at every full and half second, else
silence. A sound that starts late still has its bursts at full and half seconds.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RED, GREEN = (200, 0, 0), (0, 150, 0)


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """`(height, width, 3)`, uint8: what frame `index` (0 to 255) shows; at least 32x16 to survive lossy codecs."""
    pixels = np.zeros((height, width, 3), np.uint8)
    middle = width // 2
    pixels[:, :middle] = RED
    pixels[: height // 2, middle:] = GREEN
    for bit, strip in enumerate(np.array_split(np.arange(middle, width), 8)):
        pixels[height // 2 :, strip] = 255 * (index >> bit & 1)
    return pixels


def frame_index(pixels: np.ndarray) -> int:
    """The index that an upright picture shows, after any codec and at any size."""
    height, width, _ = pixels.shape
    strips = np.array_split(np.arange(width // 2, width), 8)
    return sum(
        int(pixels[height * 3 // 4, strip[len(strip) // 2]].mean() > 127) << bit for bit, strip in enumerate(strips)
    )


def is_upright(pixels: np.ndarray) -> bool:
    """Whether the red half is on the left and the green quarter at the top right."""
    height, width, _ = pixels.shape
    red = pixels[height // 4 :: height // 2, width // 4].astype(int)
    green = pixels[height // 4, width * 3 // 4].astype(int)
    return bool(np.abs(red - RED).max() < 40 and np.abs(green - GREEN).max() < 40)


def tone_bursts(times: np.ndarray) -> np.ndarray:
    """The sound in [-1, 1] at `times` in seconds of the media: bursts of amplitude 0.5."""
    return np.where(times % 0.5 < 0.1, 0.5 * np.sin(2000 * np.pi * times), 0.0).astype(np.float32)


def make_video(
    path: str | Path,
    num_frames: int = 25,
    *,
    frame_rate: float | Fraction = 25,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    picture: Callable[[int, int, int], np.ndarray] | None = picture,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    keyframe_interval: int = 12,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    sound: Callable[[np.ndarray], np.ndarray] | None = tone_bursts,
    audio_codec: str = "aac",
    sample_rate: int = 48000,
    layout: str = "stereo",
    sound_start: float = 0.0,
    sound_duration: float | None = None,
    sound_gap: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a media file with pictures and sound; the container follows from the suffix of `path`.

    Args:
        num_frames, frame_rate: the pictures, unless `times` gives the seconds at which each is shown (the last one is
            shown as long as the one before it).
        size: width and height.
        picture: gives picture `index` for (index, width, height) as `(height, width, 3)` uint8; None for no video.
        keyframe_interval: at most as many frames from one key frame to the next.
        rotation: degrees by which a player turns the pictures counterclockwise.
        pixel_aspect: width by height of a pixel.
        sound: gives the sound for seconds of the media, the same in all channels, in [-1, 1]; None for no sound.
        sound_start, sound_duration: seconds; by default the sound is as long as the pictures.
        sound_gap: seconds from and to which no sound is stored; for codecs of free frame size, such as pcm_s16le.
        options: of the container, for instance `{"movflags": "faststart"}`.
    """
    clock = Fraction(1, 60000)  # as fine as mpeg4 allows
    if times is None:
        clock = 1 / Fraction(frame_rate).limit_denominator(1001)
        times = [index / frame_rate for index in range(num_frames)]
    times = [float(time) for time in times]
    video_end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / float(frame_rate))
    with av.open(str(path), "w", options=options or {}) as container:
        frames, chunks = [], []
        if picture is not None:
            video = container.add_stream(codec, rate=Fraction(frame_rate).limit_denominator(1001))
            video.width, video.height = size
            video.pix_fmt = pixel_format
            video.codec_context.gop_size = keyframe_interval
            video.codec_context.time_base = clock
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                video.set_display_rotation(rotation)
            frames = [(time, "video", index) for index, time in enumerate(times)]
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=sample_rate)
            audio.layout = layout
            end = video_end if sound_duration is None else sound_start + sound_duration
            borders = np.arange(round(sound_start * sample_rate), round(end * sample_rate), 960)
            gap = (0.0, 0.0) if sound_gap is None else sound_gap
            chunks = [(b / sample_rate, "audio", int(b)) for b in borders if not gap[0] <= b / sample_rate < gap[1]]
        for time, kind, number in sorted(frames + chunks):
            if kind == "video":
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
                frame.pts, frame.time_base = round(time / clock), clock
                container.mux(video.encode(frame))
            else:
                count = min(960, round(end * sample_rate) - number)
                samples = sound((number + np.arange(count)) / sample_rate)
                samples = np.repeat(samples[None], audio.layout.nb_channels, 0)
                frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = sample_rate, number, Fraction(1, sample_rate)
                container.mux(audio.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return Path(path)
