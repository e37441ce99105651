"""Log-mel spectrograms as VGGish takes them, and the slices of the published DiffSal weights."""

from functools import cache

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from ..errors import InputError
from .audio import SAMPLE_RATE

WINDOW_LENGTH = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
FFT_LENGTH = 512
NUM_MEL_BANDS = 64
EXAMPLE_FRAMES = 64
RELEASED_EXAMPLE_HOP = 11  # spectrogram frames: 110 ms


@cache
def _window(device: torch.device) -> Tensor:
    return torch.hann_window(WINDOW_LENGTH, periodic=True, device=device)


@cache
def _filter_bank(device: torch.device) -> Tensor:
    bank = mel_filter_bank(
        num_frequency_bins=FFT_LENGTH // 2 + 1,
        num_mel_filters=NUM_MEL_BANDS,
        min_frequency=125.0,
        max_frequency=7500.0,
        sampling_rate=SAMPLE_RATE,
        norm=None,
        mel_scale="htk",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(bank).to(device, torch.float32)


def log_mel_spectrogram(waveform: Tensor) -> Tensor:
    """The log-mel spectrogram of VGGish (Hershey et al., "CNN architectures for large-scale audio classification").

    Magnitudes of a 512-point FFT of 25 ms periodic Hann windows every 10 ms, in 64 HTK mel bands from 125 to 7500 Hz
    whose triangles are linear on the mel axis, as log(x + 0.01). Frame j covers the samples [160 j, 160 j + 400).

    Args:
        waveform: `(..., samples)`, 16 kHz, in [-1, 1], at least 400 samples.

    Returns:
        float32 `(..., frames, 64)` with 1 + (samples - 400) // 160 frames.

    Raises:
        InputError: the waveform is shorter than one window.
    """
    if waveform.shape[-1] < WINDOW_LENGTH:
        raise InputError(
            f"waveform: {waveform.shape[-1]} samples are too few for a spectrogram, whose window has {WINDOW_LENGTH}"
        )
    # The STFT centres the window in its 512 points; the padding moves frame j's window back to sample 160 j.
    magnitude = torchaudio.functional.spectrogram(
        waveform.float(),
        pad=(FFT_LENGTH - WINDOW_LENGTH) // 2,
        window=_window(waveform.device),
        n_fft=FFT_LENGTH,
        hop_length=HOP_LENGTH,
        win_length=WINDOW_LENGTH,
        power=1.0,
        normalized=False,
        center=False,
    )  # (..., 257, frames)
    return torch.log(magnitude.mT @ _filter_bank(waveform.device) + 0.01)  # (..., frames, 64)


def released_log_mel_slices(waveform: Tensor, num_slices: int = 9) -> Tensor:
    """The slices of the published DiffSal weights: examples of 64 spectrogram frames, every 110 ms.

    Args:
        waveform: `(..., samples)`, 16 kHz, in [-1, 1]: the clip's sound in the middle of a zero buffer of 35,280
            samples.
        num_slices: examples to keep; a buffer of 35,280 samples has 15.

    Returns:
        float32 `(..., num_slices, 64, 64)`, the last two axes being spectrogram frames and mel bands.

    Raises:
        InputError: the waveform is too short for `num_slices` examples.
    """
    spectrogram = log_mel_spectrogram(waveform)  # (..., frames, 64)
    needed = (num_slices - 1) * RELEASED_EXAMPLE_HOP + EXAMPLE_FRAMES
    if spectrogram.shape[-2] < needed:
        samples = (needed - 1) * HOP_LENGTH + WINDOW_LENGTH
        raise InputError(
            f"waveform: {num_slices} slices need {samples} samples at {SAMPLE_RATE} Hz, got {waveform.shape[-1]}"
        )
    examples = spectrogram.unfold(-2, EXAMPLE_FRAMES, RELEASED_EXAMPLE_HOP)  # (..., examples, 64 bands, 64 frames)
    return examples[..., :num_slices, :, :].mT.contiguous()


def resize_log_mel(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes log-mel slices to `size`, bilinear and antialiased.

    Args:
        slices: `(..., slices, frames, bands)`.
        size: height and width, for instance (112, 192).

    Returns:
        `(..., slices, height, width)`.
    """
    images = slices.reshape(-1, 1, *slices.shape[-2:])
    resized = F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*slices.shape[:-2], *size)
