"""Sound at 16 kHz mono on the media's time line, read bit by bit."""

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio

from ..errors import InputError
from .container import MISSING_SOUND, decode, file_end, find_stream, open_container, origin, read_packets

SAMPLE_RATE = 16000
LOOK_BACK = 2 * SAMPLE_RATE  # samples by which a read may begin before an earlier one
JITTER = 0.05  # seconds by which the times in a file may be off without the sound being cut or parted


class AudioSource:
    """Sound at 16 kHz mono, read forward. Only what follows the latest read's beginning, less `LOOK_BACK`, is held."""

    def __init__(self) -> None:
        self._blocks: Iterator[tuple[int, np.ndarray]] | None = None
        self._held: deque[tuple[int, np.ndarray]] = deque()  # number of the first sample, samples
        self._first: float = -math.inf  # of the latest read
        self._sound_end = 0  # number of the sample after the last one known
        self._finished = False
        self._damage: InputError | None = None

    def read(self, first: int, last: int) -> torch.Tensor:
        """The samples `first` to `last` - 1; sample 0 is at 0 s of the media. Silence where there is no sound.

        Args:
            first: may be negative. More than `LOOK_BACK` behind an earlier read, the source is read anew.
            last: not less than `first`.

        Returns:
            float32 `(last - first,)`, in [-1, 1].

        Raises:
            ValueError: `first` is more than `last`, or the source is closed.
            InputError: the file is damaged before `last`.
        """
        if last < first or self._first == math.inf:
            raise ValueError(
                f"samples {first} to {last} cannot be read: the source is closed, or they are in no order"
            )
        if first < self._first - LOOK_BACK:
            self._restart()
        self._first = max(self._first, first)
        while self._held and self._held[0][0] + len(self._held[0][1]) <= self._first - LOOK_BACK:
            self._held.popleft()
        while self._sound_end < last and not self._finished:
            self._pull(first)
        if self._damage and last > self._sound_end + MISSING_SOUND * SAMPLE_RATE:
            raise self._damage

        waveform = np.zeros(last - first, np.float32)
        for position, samples in self._held:
            begin, end = max(position, first), min(position + len(samples), last)
            if begin < end:
                waveform[begin - first : end - first] = samples[begin - position : end - position]
        return torch.from_numpy(waveform)

    def _restart(self) -> None:
        if self._blocks is not None:
            self._blocks.close()
        self._blocks, self._first, self._sound_end = None, -math.inf, 0
        self._finished, self._damage = False, None
        self._held.clear()

    def _pull(self, first: int) -> None:
        if self._blocks is None:
            self._blocks = self._read_blocks(first)
        try:
            position, samples = next(self._blocks)
        except StopIteration:
            self._finished = True
            return
        except InputError as damage:  # only matters to who reads that far
            self._finished, self._damage = True, damage
            return
        overlap = max(self._sound_end - position, 0)
        position, samples = position + overlap, samples[overlap:]
        if len(samples):
            self._sound_end = position + len(samples)
            if self._sound_end > first - LOOK_BACK:
                self._held.append((position, samples))

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of samples, each with the number of its first, in order, those before `first` not needed."""
        raise NotImplementedError

    def end(self) -> float:
        """Seconds on the media's time line at which the sound ends."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file; nothing can be read then."""
        self._first = math.inf
        self._held.clear()
        if self._blocks is not None:
            self._blocks.close()

    def __enter__(self) -> "AudioSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_audio(
    source: str | Path | np.ndarray | torch.Tensor | tuple[np.ndarray | torch.Tensor, int],
    *,
    sample_rate: int | None = None,
) -> AudioSource:
    """Opens sound. A first read far into a file seeks there.

    Args:
        source: a media file of any kind that FFmpeg reads, or a waveform `(samples,)` or `(channels, samples)`,
            floating point in [-1, 1] or int16; also as a tuple of the waveform and its sample rate.
        sample_rate: samples per second of a waveform. A file has its own.

    Raises:
        InputError: the source cannot be read, has no sound, or its values, shape or rate are wrong. A damaged file
            raises when the reading gets there.
    """
    if isinstance(source, str | Path):
        if sample_rate is not None:
            raise InputError(f"sample_rate: {source} is a file and has its own; leave sample_rate out")
        return _SoundFile(Path(source))
    if isinstance(source, tuple) and len(source) == 2 and sample_rate is None:
        source, sample_rate = source
    if not isinstance(source, np.ndarray | torch.Tensor):
        raise InputError(
            "sound is a file, or a waveform as a NumPy array or torch tensor with its sample rate, "
            f"not {type(source).__name__}"
        )
    return _Waveform(source, sample_rate)


class _SoundFile(AudioSource):
    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        with open_container(path) as container:
            find_stream(container, path, "audio")

    def end(self) -> float:
        with open_container(self._path) as container:
            stream = find_stream(container, self._path, "audio")
            end, certain = file_end(container, stream)
            if certain:
                return end
            try:
                packets = (packet for packet in read_packets(container, [stream]) if packet.pts is not None)
                last = max(((packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets), default=0)
            except av.FFmpegError as error:
                raise InputError(f"{self._path}: the sound cannot be read to its end ({error.strerror})") from None
            return max(float(last) - origin(container), 0.0)

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        # Codecs need some of what comes before to get the first samples right.
        start = (first - LOOK_BACK) / SAMPLE_RATE - 0.5 if first > 10 * SAMPLE_RATE else 0.0
        resampler, resampled, fed_end, position = None, None, 0.0, 0
        for time, _, frame in decode(self._path, "audio", start):
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            if resampler is None or kind != resampled or abs(time - fed_end) > JITTER:
                if resampler is not None:
                    yield position, self._resample(resampler, None)
                # A mix of channels keeps within [-1, 1]: of two, it is the mean.
                resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE, options={"rematrix_maxval": 1})
                resampled, fed_end, position = kind, time, round(time * SAMPLE_RATE)
            samples = self._resample(resampler, frame)
            yield position, samples
            position += len(samples)
            fed_end += frame.samples / frame.sample_rate
        if resampler is not None:
            yield position, self._resample(resampler, None)

    def _resample(self, resampler: av.AudioResampler, frame: av.AudioFrame | None) -> np.ndarray:
        try:
            # Without conversion, None comes back as it is.
            blocks = [block.to_ndarray()[0] for block in resampler.resample(frame) if block is not None]
        except (av.FFmpegError, ValueError) as error:
            raise InputError(
                f"{self._path}: its sound cannot be mixed to one channel at {SAMPLE_RATE} Hz ({error}); "
                "convert it to stereo"
            ) from None
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class _Waveform(AudioSource):
    def __init__(self, source: np.ndarray | torch.Tensor, sample_rate: int | None):
        super().__init__()
        shape = tuple(source.shape)
        if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > shape[1]):
            raise InputError(f"the waveform has shape {shape}; (samples,) or (channels, samples) is expected")
        if not isinstance(sample_rate, int | np.integer) or sample_rate <= 0:
            raise InputError(f"sample_rate: a waveform needs its rate, a positive integer in Hz, got {sample_rate!r}")
        sample_rate = int(sample_rate)
        if sample_rate * SAMPLE_RATE // math.gcd(sample_rate, SAMPLE_RATE) ** 2 > 2**25:  # size of the kernel
            raise InputError(
                f"sample_rate: {sample_rate} Hz has too complicated a ratio to {SAMPLE_RATE} Hz; "
                "resample the waveform, for instance to 48000 Hz"
            )
        if str(source.dtype).removeprefix("torch.") not in ("int16", "float16", "bfloat16", "float32", "float64"):
            raise InputError(f"the waveform has dtype {source.dtype}; int16, or floats in [-1, 1], is expected")
        if isinstance(source, np.ndarray):
            waveform = torch.from_numpy(source.astype(np.float32, order="C"))
        else:
            waveform = source.detach().to("cpu", torch.float32)
        if "int16" in str(source.dtype):
            waveform = waveform / 2**15
        peak = waveform.abs().max()
        if not peak <= 1.5:  # also refuses NaN
            raise InputError(
                f"the waveform has values up to {peak:g}; floats are expected in [-1, 1] (for 16-bit values: int16)"
            )
        mono = waveform if waveform.ndim == 1 else waveform.mean(0)
        self._samples = torchaudio.functional.resample(mono, sample_rate, SAMPLE_RATE).numpy()

    def end(self) -> float:
        return len(self._samples) / SAMPLE_RATE

    def _read_blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self._samples
