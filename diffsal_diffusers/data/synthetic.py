"""Synthetic scenes in which sound matters. They are no recordings of people: nobody ever looked at them.

Textured objects of a few kinds move over a cloudy background and pulse, each to a rhythm of its own. Every kind has a
voice, and one object at a time is heard: its voice, in step with its pulses. The ground truth says that people look at
the one that sounds, less at the others, and a little at the centre. So the picture tells where to look among the
objects, the sound which one; and since higher voices live higher in the picture, sound alone tells something too.
"""

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..media.audio import SAMPLE_RATE, AudioSource, open_audio
from .recording import Recording

NUM_KINDS = 6
OBSERVERS = 20  # fixations a frame
SHARES = {"sounding": 0.6, "others": 0.25, "centre": 0.15}  # of the ground-truth density
CENTRE_SPREAD = 0.16  # standard deviation of the centre bias over the picture's width
TEXTURE_SIDE = 64


@dataclass
class MovingObject:
    """One object of a scene: what it looks and sounds like, and its paths over time.

    Args:
        kind: 0 to `NUM_KINDS` - 1: colour, stripes and voice.
        radius: in shares of the picture's height.
        texture: `(side, side, 3)` in [0, 1].
        home: centre of the path, (x, y) in shares of the picture's width and height.
        swing: reach of the path, (x, y), likewise.
        pace: radians per second, one for x and one for y.
        phase: radians, likewise.
        rhythm: pulses per second.
        offset: phase of the pulses, in pulses.
    """

    kind: int
    radius: float
    texture: np.ndarray
    home: np.ndarray
    swing: np.ndarray
    pace: np.ndarray
    phase: np.ndarray
    rhythm: float
    offset: float

    def position(self, time: float) -> np.ndarray:
        """Centre (x, y) in shares of the picture's width and height."""
        return np.clip(self.home + self.swing * np.sin(self.pace * time + self.phase), 0.06, 0.94)

    def pulse(self, time: float | np.ndarray) -> float | np.ndarray:
        """From 0 to 1: what swells the object and its voice alike."""
        return (0.5 + 0.5 * np.cos(2 * np.pi * (self.rhythm * time + self.offset))) ** 3


class SyntheticScene(Recording):
    """One scene, drawn from a seed; the same seed gives the same scene, whichever frame is asked for first.

    Args:
        seed: of everything in the scene.
        num_frames: frames of the scene.
        fps: frames per second.
        size: height and width in pixels.
        silent: the scene has no sound; picture and ground truth stay.
        shuffled_audio: the scene has the sound of another one; picture and ground truth stay.
    """

    def __init__(
        self,
        seed: int,
        num_frames: int = 50,
        fps: float = 25.0,
        size: tuple[int, int] = (128, 224),
        silent: bool = False,
        shuffled_audio: bool = False,
    ):
        variant = "-silent" if silent else "-shuffled" if shuffled_audio else ""
        super().__init__(f"synthetic{variant}", f"scene_{seed:07d}", num_frames, fps)
        self.seed = seed
        self.size = size
        self.silent = silent
        self.shuffled_audio = shuffled_audio

    @cached_property
    def objects(self) -> list[MovingObject]:
        """The objects, the ones in front last."""
        rng = self._rng(0)
        kinds = rng.permutation(NUM_KINDS)[: rng.integers(3, 5)]
        # Even places from left to right in random order: objects meet now and then, but do not start in a heap.
        columns = rng.permutation(len(kinds))
        return [self._draw_object(rng, int(k), (c + 0.5) / len(kinds)) for k, c in zip(kinds, columns, strict=True)]

    @staticmethod
    def _draw_object(rng: np.random.Generator, kind: int, column: float) -> MovingObject:
        level = 0.8 - 0.6 * kind / (NUM_KINDS - 1)  # higher voices live higher
        return MovingObject(
            kind=kind,
            radius=rng.uniform(0.08, 0.13),
            texture=_object_texture(rng, kind),
            home=np.array([column + rng.uniform(-0.08, 0.08), level + rng.normal(0, 0.07)]).clip(0.1, 0.9),
            swing=rng.uniform(0.02, 0.1, 2),
            pace=rng.uniform(0.8, 2.5, 2) * rng.choice([-1, 1], 2),
            phase=rng.uniform(0, 2 * np.pi, 2),
            rhythm=rng.uniform(2.0, 5.0),
            offset=rng.uniform(),
        )

    @cached_property
    def turns(self) -> list[tuple[float, int]]:
        """(time from which, object that sounds), in order."""
        rng = self._rng(1)
        time, turns = 0.0, [(0.0, int(rng.integers(len(self.objects))))]
        while (time := time + rng.uniform(0.8, 1.6)) < self.num_frames / self.fps:
            others = [i for i in range(len(self.objects)) if i != turns[-1][1]]
            turns.append((time, int(rng.choice(others))))
        return turns

    def sounding(self, time: float) -> int:
        """The object that sounds at a time."""
        return next(index for begin, index in reversed(self.turns) if begin <= time)

    @cached_property
    def waveform(self) -> torch.Tensor:
        """The scene's own sound: float32 `(samples,)` at 16 kHz, in [-1, 1]."""
        rng = self._rng(2)
        time = np.arange(int(self.num_frames / self.fps * SAMPLE_RATE)) / SAMPLE_RATE
        waveform = rng.normal(0, 0.003, len(time))
        ends = [begin for begin, _ in self.turns[1:]] + [np.inf]
        for (begin, index), end in zip(self.turns, ends, strict=True):
            here = (time >= begin) & (time < end)
            one = self.objects[index]
            waveform[here] += 0.5 * one.pulse(time[here]) * _voice(one.kind, time[here])
        return torch.from_numpy(waveform.clip(-1, 1).astype(np.float32))

    @cached_property
    def background(self) -> np.ndarray:
        """`(height, width, 3)`, uint8, a margin larger than the picture, which pans over it."""
        rng = self._rng(3)
        height, width = self.size
        clouds = _clouds(rng, (height + 32, width + 32), exponent=1.3)
        return (255 * (0.15 + 0.6 * clouds)).astype(np.uint8)

    def media(self) -> dict[str, Any]:
        frames = np.stack([self.frame(i) for i in range(self.num_frames)])
        audio = self._heard()
        return {"video": frames, "audio": False if audio is None else (audio, SAMPLE_RATE), "fps": self.fps}

    def open_sound(self) -> AudioSource | None:
        audio = self._heard()
        return None if audio is None else open_audio((audio, SAMPLE_RATE))

    def _heard(self) -> torch.Tensor | None:
        if self.silent:
            return None
        if self.shuffled_audio:
            other = SyntheticScene(self.seed ^ 0x2A5A5, self.num_frames, self.fps, self.size)
            return other.waveform
        return self.waveform

    def frame(self, index: int) -> np.ndarray:
        time, (height, width) = index / self.fps, self.size
        rows, columns = (round(16 + 12 * np.sin(0.7 * time + shift)) for shift in (self.seed, self.seed + 1))
        picture = self.background[rows : rows + height, columns : columns + width].copy()
        for one in self.objects:
            _draw(picture, one, time)
        return picture

    def density(self, index: int) -> torch.Tensor:
        time, (height, width) = index / self.fps, self.size
        others = len(self.objects) - 1
        density = SHARES["centre"] * _gaussian(self.size, (0.5, 0.5), CENTRE_SPREAD * width)
        for i, one in enumerate(self.objects):
            share = SHARES["sounding"] if i == self.sounding(time) else SHARES["others"] / others
            density += share * _gaussian(self.size, one.position(time), 0.6 * one.radius * height)
        return torch.from_numpy(density.astype(np.float32))

    def fixations(self, index: int) -> torch.Tensor:
        density = self.density(index).double().numpy().ravel()
        places = self._rng(4 + index).choice(len(density), OBSERVERS, p=density / density.sum())
        fixations = np.zeros(len(density), dtype=bool)
        fixations[places] = True
        return torch.from_numpy(fixations.reshape(self.size))

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])


def _object_texture(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Clouds in the kind's colour under its stripes."""
    colour = np.array(colorsys.hsv_to_rgb(kind / NUM_KINDS, 0.75, 0.95))
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE] / TEXTURE_SIDE
    angle = np.pi * kind / NUM_KINDS
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * (2 + kind % 3) * (x * np.cos(angle) + y * np.sin(angle)))
    clouds = _clouds(rng, (TEXTURE_SIDE, TEXTURE_SIDE), exponent=1.0).mean(axis=2)
    return colour * (0.35 + 0.4 * stripes + 0.25 * clouds)[..., None]


def _clouds(rng: np.random.Generator, size: tuple[int, int], exponent: float) -> np.ndarray:
    """Coloured noise of a spectrum 1 / f^exponent, as natural images have: `(height, width, 3)` in [0, 1]."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectra = np.fft.rfft2(rng.standard_normal((4, *size))) * frequency**-exponent
    grey, *colours = np.fft.irfft2(spectra, s=size)
    clouds = np.stack([grey + 0.4 * colour for colour in colours], axis=2)
    clouds = (clouds - clouds.mean()) / clouds.std()
    return (0.5 + 0.2 * clouds).clip(0, 1)


def _voice(kind: int, time: np.ndarray) -> np.ndarray:
    """A tone with overtones, 220 Hz for kind 0 and 1.65 times as high for each next one."""
    pitch = 220.0 * 1.65**kind
    tones = sum(np.sin(2 * np.pi * n * pitch * time) / n for n in (1, 2, 3) if n * pitch < SAMPLE_RATE / 2)
    return tones / 1.9


def _draw(picture: np.ndarray, one: MovingObject, time: float) -> None:
    """Puts an object into the picture: a disc with soft edges, larger and brighter while it pulses."""
    height, width = picture.shape[:2]
    pulse = one.pulse(time)
    radius = one.radius * height * (0.85 + 0.3 * pulse)
    x, y = one.position(time) * (width, height)
    left, right = max(int(x - radius - 1), 0), min(int(x + radius + 2), width)
    top, bottom = max(int(y - radius - 1), 0), min(int(y + radius + 2), height)
    u = (np.arange(left, right) + 0.5 - x) / radius
    v = (np.arange(top, bottom) + 0.5 - y) / radius
    distance = np.hypot(u[None], v[:, None])
    cover = ((1 - distance) * radius / 2).clip(0, 1)[..., None]
    column, row = (((c + 1) / 2 * TEXTURE_SIDE).astype(int).clip(0, TEXTURE_SIDE - 1) for c in (u, v))
    colour = 255 * (one.texture[row[:, None], column[None]] * (0.7 + 0.3 * pulse))
    patch = picture[top:bottom, left:right]
    patch[:] = patch * (1 - cover) + colour * cover


def _gaussian(size: tuple[int, int], centre: tuple[float, float] | np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of sum one around a centre in shares of width and height, `(height, width)`; sigma in pixels."""
    height, width = size
    x = np.exp(-0.5 * ((np.arange(width) + 0.5 - centre[0] * width) / sigma) ** 2)
    y = np.exp(-0.5 * ((np.arange(height) + 0.5 - centre[1] * height) / sigma) ** 2)
    return np.outer(y / y.sum(), x / x.sum())
