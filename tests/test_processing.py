"""The processor: frames, log-mel slices in time, saving."""

import numpy as np
import pytest
import torch

from diffsal_diffusers import InputError, SaliencyProcessor
from diffsal_diffusers.media.audio import open_audio
from diffsal_diffusers.media.log_mel import log_mel_spectrogram, released_log_mel_slices, resize_log_mel

RATE = 16000


def clicks(times, seconds=4.0):
    """Silence with a short burst of noise at each of the times."""
    waveform = np.zeros(int(seconds * RATE), np.float32)
    rng = np.random.default_rng(0)
    for time in times:
        waveform[int(time * RATE) :][:160] = 0.5 * rng.standard_normal(160).clip(-1.9, 1.9)
    return open_audio((waveform, RATE))


def frame_times(first, count=16, fps=25.0):
    return [first + i / fps for i in range(count)]


def test_frames_are_resized_and_normalised():
    processor = SaliencyProcessor(frame_size=(32, 64), image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 1.0))
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 80:, 1] = 255
    frame = processor.preprocess_frame(pixels)
    assert frame.shape == (3, 32, 64) and frame.dtype == torch.uint8
    values = processor.normalize(frame[None])
    assert values.dtype == torch.float32
    assert torch.all(values[:, 0] == 1) and torch.all(values[:, 2] == 0)
    assert torch.all(values[:, 1, :, :30] == -1) and torch.all(values[:, 1, :, 34:] == 3)


def test_slices_are_centred_on_the_clip():
    """A click is in the middle of the slice that the clip's time asks for."""
    processor = SaliencyProcessor(audio_size=(64, 64))
    times = frame_times(1.0)
    for k in range(9):
        centre = 1.0 - 0.02 + 0.64 * (k + 0.5) / 9  # the clip lasts from 0.98 s to 1.62 s
        slices = processor.log_mel_slices(clicks([centre - 0.005]), [times])
        assert slices.shape == (1, 1, 9, 64, 64)
        energy = slices[0, 0, k].exp().sum(dim=1)
        middle = (energy * torch.arange(64)).sum() / energy.sum()
        assert torch.isclose(middle, torch.tensor(31.5), atol=2.0)


def test_a_slice_does_not_depend_on_the_batch():
    processor = SaliencyProcessor(audio_size=(64, 64))
    clips = [frame_times(i / 25) for i in range(40)]
    together = processor.log_mel_slices(clicks([0.3, 0.9, 1.4]), clips)
    forward = clicks([0.3, 0.9, 1.4])
    for i, clip in enumerate(clips):
        torch.testing.assert_close(processor.log_mel_slices(forward, [clip])[0], together[i])


def test_before_and_after_the_sound_is_silence():
    processor = SaliencyProcessor(audio_size=(64, 64))
    silent = np.log(0.01)
    sound = clicks([0.5], seconds=1.0)
    before, after = processor.log_mel_slices(sound, [frame_times(-5.0), frame_times(9.0)])
    torch.testing.assert_close(before, torch.full_like(before, silent))
    torch.testing.assert_close(after, torch.full_like(after, silent))


def test_a_still_clip_has_its_slices_at_one_time():
    processor = SaliencyProcessor(audio_size=(64, 64))
    slices = processor.log_mel_slices(clicks([1.0]), [[1.0] * 16])
    torch.testing.assert_close(slices[0, 0], slices[0, 0, :1].expand(9, -1, -1))


def test_the_released_front_end_is_selectable():
    """The sound of the clip, half a frame more on either side, in the middle of 35,280 samples."""
    processor = SaliencyProcessor(audio_alignment="released")
    waveform = np.random.default_rng(1).standard_normal(4 * RATE).astype(np.float32).clip(-1, 1)
    times = frame_times(1.0)
    slices = processor.log_mel_slices(open_audio((waveform, RATE)), [times])
    first, last = round((times[0] - 0.02) * RATE), round((times[-1] + 0.02) * RATE)
    buffer = torch.zeros(35280)
    offset = (35280 - (last - first)) // 2
    buffer[offset : offset + last - first] = torch.from_numpy(waveform[first:last])
    expected = resize_log_mel(released_log_mel_slices(buffer), (112, 192))
    assert slices.shape == (1, 1, 9, 112, 192)
    torch.testing.assert_close(slices[0, 0], expected)


def test_spectrogram_of_slices_is_the_spectrogram_of_the_sound():
    processor = SaliencyProcessor(audio_size=(64, 64), audio_slices=1)
    waveform = np.random.default_rng(2).standard_normal(2 * RATE).astype(np.float32).clip(-1, 1)
    slices = processor.log_mel_slices(open_audio((waveform, RATE)), [[1.0] * 16])
    start = round((RATE - 31.5 * 160 - 200) / 160)
    torch.testing.assert_close(slices[0, 0, 0], log_mel_spectrogram(torch.from_numpy(waveform))[start : start + 64])


def test_saving(tmp_path):
    processor = SaliencyProcessor(frame_size=(64, 96), audio_alignment="released", target_frame=15)
    processor.save_pretrained(tmp_path)
    loaded = SaliencyProcessor.from_pretrained(tmp_path)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in processor.config.items() if k[0] != "_"
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frame_size": (224, 380)}, r"multiples of 32, got \(224, 380\)"),
        ({"frame_size": (64,)}, r"multiples of 32, got \(64,\)"),
        ({"image_std": (0.2, 0.0, 0.2)}, "the latter positive"),
        ({"audio_slices": -1}, "must be at least 0"),
        ({"clip_start": "loop"}, "`clip_start` must be one of repeat, mirror, got 'loop'"),
        ({"clip_start": "mirror", "target_frame": 15}, "and no `audio_slices`, got 15 and 9"),
        ({"clip_start": "mirror", "audio_slices": 0}, "needs the last frame as `target_frame`, 15"),
        ({"target_frame": 16}, "`target_frame` must be from 0 to 15, got 16"),
        ({"audio_alignment": "centre"}, "`audio_alignment` must be one of clip, released, got 'centre'"),
    ],
)
def test_wrong_settings(config, message):
    with pytest.raises(InputError, match=message):
        SaliencyProcessor(**config)
