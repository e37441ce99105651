"""Synthetic scenes: drawn from a seed, sound and picture in step, ground truth on what sounds."""

import itertools

import numpy as np
import pytest
import torch

from diffsal_diffusers.data.synthetic import NUM_KINDS, SHARES, SyntheticScene
from diffsal_diffusers.media.audio import SAMPLE_RATE
from diffsal_diffusers.media.log_mel import log_mel_spectrogram

SMALL = {"num_frames": 25, "size": (96, 160)}


def test_the_same_seed_gives_the_same_scene_in_any_order():
    one, other = SyntheticScene(3, **SMALL), SyntheticScene(3, **SMALL)
    for index in (20, 0, 7):
        np.testing.assert_array_equal(one.frame(index), other.media()["video"][index])
        assert torch.equal(other.fixations(index), one.fixations(index))
        assert torch.equal(one.density(index), other.density(index))
    assert torch.equal(one.waveform, other.waveform)
    assert not np.array_equal(one.frame(0), SyntheticScene(4, **SMALL).frame(0))


@pytest.mark.parametrize("seed", range(5))
def test_shapes_and_ranges(seed):
    scene = SyntheticScene(seed, **SMALL)
    assert scene.frame(3).shape == (96, 160, 3) and scene.frame(3).dtype == np.uint8
    assert scene.density(3).shape == scene.fixations(3).shape == (96, 160)
    assert 0.9 < scene.density(3).sum() <= 1.0001  # what lies outside the picture is lost
    assert 1 < scene.fixations(3).sum() <= 20
    assert scene.waveform.shape == (SAMPLE_RATE,) and scene.waveform.abs().max() <= 1
    assert 3 <= len(scene.objects) <= 4
    assert len({one.kind for one in scene.objects}) == len(scene.objects)


@pytest.mark.parametrize("seed", range(5))
def test_people_look_at_what_sounds(seed):
    scene = SyntheticScene(seed, num_frames=100, size=(96, 160))
    heard = set()
    for index in range(0, 100, 9):
        density, time = scene.density(index), index / scene.fps
        heard.add(scene.sounding(time))
        masses = []
        for one in scene.objects:
            x, y = one.position(time) * (160, 96)
            masses.append(density[max(int(y) - 3, 0) : int(y) + 4, max(int(x) - 3, 0) : int(x) + 4].mean().item())
        if len({tuple((one.position(time) * 5).round()) for one in scene.objects}) == len(scene.objects):
            assert np.argmax(masses) == scene.sounding(time)
    assert len(heard) > 1  # the turns change


def test_objects_move_and_pulse():
    scene = SyntheticScene(0, num_frames=100, size=(96, 160))
    times = np.arange(100) / 25
    for one in scene.objects:
        places = np.stack([one.position(t) for t in times])
        assert np.ptp(places, axis=0).max() > 0.01
        pulses = one.pulse(times)
        assert pulses.min() < 0.05 and pulses.max() > 0.9
    change = np.abs(scene.frame(0).astype(int) - scene.frame(10)).mean()
    assert change > 1


def test_the_sound_is_the_voice_of_the_one_whose_turn_it_is_in_step_with_its_pulses():
    for seed in range(6):
        scene = SyntheticScene(seed, num_frames=75)
        spectrogram = log_mel_spectrogram(scene.waveform)  # frames 64
        centres = (np.arange(len(spectrogram)) * 160 + 200) / SAMPLE_RATE
        loudness = spectrogram.exp().sum(dim=1).numpy()
        begin, first = scene.turns[0]
        end = scene.turns[1][0]
        here = (centres > begin + 0.02) & (centres < end - 0.02)
        pulses = {i: one.pulse(centres[here]) for i, one in enumerate(scene.objects)}
        agreement = {i: np.corrcoef(loudness[here], pulse)[0, 1] for i, pulse in pulses.items()}
        assert max(agreement, key=agreement.get) == first and agreement[first] > 0.9


def test_each_kind_has_a_voice_and_a_look():
    """Kinds can be told apart by ear (strongest mel band) and by eye (colour)."""
    bands, colours = {}, {}
    for seed in range(30):
        scene = SyntheticScene(seed, num_frames=75)
        end = scene.turns[1][0]
        one = scene.objects[scene.turns[0][1]]
        part = log_mel_spectrogram(scene.waveform[: int(end * SAMPLE_RATE)])
        bands.setdefault(one.kind, set()).add(int(part.exp().mean(dim=0).argmax()))
        colours.setdefault(one.kind, []).append(one.texture.mean(axis=(0, 1)).argsort())
    assert len(bands) == NUM_KINDS
    spans = sorted((min(values), max(values)) for values in bands.values())
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_higher_voices_live_higher():
    kinds, heights = [], []
    for seed in range(40):
        for one in SyntheticScene(seed, num_frames=5).objects:
            kinds.append(one.kind)
            heights.append(1 - one.home[1])
    assert np.corrcoef(kinds, heights)[0, 1] > 0.8


def test_variants_for_controls():
    scene = SyntheticScene(5, **SMALL)
    silent = SyntheticScene(5, **SMALL, silent=True)
    shuffled = SyntheticScene(5, **SMALL, shuffled_audio=True)
    for variant in (silent, shuffled):
        np.testing.assert_array_equal(variant.frame(9), scene.frame(9))
        assert torch.equal(variant.density(9), scene.density(9))
    assert silent.open_sound() is None and silent.media()["audio"] is False
    assert torch.equal(scene.media()["audio"][0], scene.waveform)
    with scene.open_sound() as own, shuffled.open_sound() as others:
        assert not torch.equal(own.read(0, 16_000), others.read(0, 16_000))


def test_shares_are_shares():
    assert sum(SHARES.values()) == pytest.approx(1)
