"""The log-mel spectrogram against the published front end, and its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsal_diffusers.errors import InputError
from diffsal_diffusers.media.log_mel import log_mel_spectrogram, released_log_mel_slices, resize_log_mel


@pytest.fixture(scope="module")
def published():
    with np.load(Path(__file__).parent / "fixtures" / "log_mel.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_agrees_with_the_published_front_end(published):
    slices = released_log_mel_slices(published["waveform"], num_slices=15)
    assert slices.shape == (15, 64, 64) and slices.dtype == torch.float32
    torch.testing.assert_close(slices, published["log_mel_examples"][:, 0], atol=1e-4, rtol=0)


def test_agrees_with_the_published_resizing(published):
    resized = resize_log_mel(released_log_mel_slices(published["waveform"]), (112, 192))
    assert resized.shape == (9, 112, 192)
    torch.testing.assert_close(resized[:, None, ::4, ::4], published["resized"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_samples", [400, 559, 560, 35280])
def test_frame_covers_400_samples_every_160(num_samples):
    waveform = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    spectrogram = log_mel_spectrogram(waveform)
    assert spectrogram.shape == (1 + (num_samples - 400) // 160, 64)
    j = len(spectrogram) - 1
    torch.testing.assert_close(spectrogram[j : j + 1], log_mel_spectrogram(waveform[160 * j : 160 * j + 400]))


def test_tone_and_silence():
    assert log_mel_spectrogram(torch.zeros(1600)) == pytest.approx(np.log(0.01))
    time = torch.arange(16000) / 16000
    mel = torch.linspace(*(1127 * np.log1p(np.array([125.0, 7500.0]) / 700)), 66)[1:-1]  # centres of the bands
    for frequency in (440.0, 1000.0, 5000.0):
        spectrum = log_mel_spectrogram(0.5 * torch.sin(2 * torch.pi * frequency * time)).mean(0)
        nearest = (mel - 1127 * np.log1p(frequency / 700)).abs().argmin()
        assert abs(int(spectrum.argmax()) - int(nearest)) <= 1


def test_batches_and_types():
    waveform = torch.randn(2, 3, 35280, generator=torch.Generator().manual_seed(0)) * 0.1
    slices = released_log_mel_slices(waveform)
    assert slices.shape == (2, 3, 9, 64, 64) and resize_log_mel(slices, (112, 192)).shape == (2, 3, 9, 112, 192)
    torch.testing.assert_close(slices[1, 2], released_log_mel_slices(waveform[1, 2]))
    torch.testing.assert_close(slices, released_log_mel_slices(waveform.double()))
    torch.testing.assert_close(resize_log_mel(slices, (64, 64)), slices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(published):
    slices = released_log_mel_slices(published["waveform"].cuda(), num_slices=15)
    torch.testing.assert_close(slices.cpu(), published["log_mel_examples"][:, 0], atol=1e-4, rtol=0)


def test_too_short():
    with pytest.raises(InputError, match="waveform: 399 samples are too few"):
        log_mel_spectrogram(torch.zeros(399))
    with pytest.raises(InputError, match="9 slices need 24560 samples at 16000 Hz, got 24559"):
        released_log_mel_slices(torch.zeros(24559))
    assert released_log_mel_slices(torch.zeros(24560)).shape == (9, 64, 64)
