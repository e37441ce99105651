"""Sound at 16 kHz on the media's time line, from every kind of source, read in steps."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import make_video, tone_bursts

from diffsal_diffusers.errors import InputError
from diffsal_diffusers.media.audio import LOOK_BACK, SAMPLE_RATE, open_audio
from diffsal_diffusers.media.video import open_video


def read(source, seconds=1.0, **options):
    with open_audio(source, **options) as sound:
        return sound.read(0, round(seconds * SAMPLE_RATE))


def expected(seconds=1.0, begin=0.0, end=math.inf):
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return torch.from_numpy(np.where((begin <= times) & (times < end), tone_bursts(times), 0).astype(np.float32))


def assert_bursts(waveform, reference, tolerance=0.01):
    """Compares two waveforms, but for the ringing at borders of bursts."""
    assert waveform.shape == reference.shape and waveform.dtype == torch.float32
    assert (waveform - reference).square().mean().sqrt() < tolerance


# Files


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sound.wav", {"audio_codec": "pcm_s16le", "sample_rate": 16000, "layout": "mono"}),
        ("float.mkv", {"audio_codec": "pcm_f32le", "sample_rate": 16000, "layout": "mono"}),
        ("sound.wav", {"audio_codec": "pcm_s16le", "sample_rate": 44100}),
        ("sound.wav", {"audio_codec": "pcm_s24le", "sample_rate": 96000, "layout": "5.1"}),
        ("sound.wav", {"audio_codec": "pcm_s16le", "sample_rate": 22050, "layout": "3.0"}),
        ("sound.flac", {"audio_codec": "flac"}),
        ("sound.mp3", {"audio_codec": "mp3", "sample_rate": 44100}),
        ("sound.opus", {"audio_codec": "libopus"}),
        ("sound.m4a", {}),
        ("sound.mka", {"audio_codec": "aac", "sample_rate": 44100}),
        ("film.mp4", {"with_video": True}),
        ("film.mkv", {"with_video": True, "audio_codec": "flac", "sample_rate": 48000}),
        ("film.webm", {"with_video": True, "codec": "libvpx-vp9", "audio_codec": "libopus", "size": (32, 32)}),
    ],
)
def test_file(tmp_path, name, options):
    if not (options := dict(options)).pop("with_video", False):
        options["picture"] = None
    path = make_video(tmp_path / name, **options)
    assert_bursts(read(path, 1.5), expected(1.5, end=1.0))
    with open_audio(path) as sound:
        assert sound.end() == pytest.approx(1, abs=0.03)
    if options.get("audio_codec") == "pcm_f32le":  # nothing to convert
        torch.testing.assert_close(read(path), expected(), atol=1e-6, rtol=0)


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.layout = "stereo"
        samples = np.stack([np.full(16000, 0.75, np.float32), np.full(16000, -0.25, np.float32)])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    torch.testing.assert_close(read(path), torch.full((16000,), 0.25), atol=1e-4, rtol=0)


def test_file_and_waveform_agree(tmp_path):
    rate = 44100
    path = make_video(tmp_path / "sound.wav", picture=None, audio_codec="pcm_s16le", sample_rate=rate, layout="mono")
    waveform = tone_bursts(np.arange(rate) / rate)
    assert_bursts(read(path), read((waveform, rate)), tolerance=2e-3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_sound_that_starts_late_and_ends_early(tmp_path, suffix):
    codec = "pcm_s16le" if suffix == "mkv" else "aac"
    path = make_video(tmp_path / f"film.{suffix}", 100, sound_start=0.3, sound_duration=1.5, audio_codec=codec)
    waveform = read(path, 4)
    # MP4 writes a delay in whole milliseconds, so tones of 1 kHz are compared by their level.
    level = torch.nn.functional.avg_pool1d(torch.stack([waveform, expected(4, 0.3, 1.8)])[:, None].abs(), 160)
    assert (level[0] - level[1]).abs().max() < (0.02 if suffix == "mkv" else 0.08)
    assert (waveform[: round(0.27 * SAMPLE_RATE)] == 0).all() and (waveform[round(1.9 * SAMPLE_RATE) :] == 0).all()


def test_sound_longer_than_the_picture(tmp_path):
    path = make_video(tmp_path / "film.mkv", 5, sound_duration=3, audio_codec="flac")
    assert_bursts(read(path, 4), expected(4, end=3))


def test_sound_that_begins_before_the_picture(tmp_path):
    path = make_video(tmp_path / "film.mkv", times=[1.0, 1.04, 1.08], audio_codec="pcm_s16le")
    assert_bursts(read(path), expected())
    with open_video(path) as video:
        assert [frame.time for frame in video] == pytest.approx([1.0, 1.04, 1.08], abs=1e-3)


def test_gap_is_silence_and_jitter_is_not_cut(tmp_path):
    path = make_video(tmp_path / "gap.mkv", 50, sound_gap=(0.52, 1.02), audio_codec="pcm_s16le")
    reference = expected(2)
    reference[round(0.52 * SAMPLE_RATE) : round(1.02 * SAMPLE_RATE)] = 0
    assert_bursts(read(path, 2), reference)
    # Times in whole milliseconds are off by up to half of one at each of the packets of 21.33 ms.
    path = make_video(tmp_path / "tone.mka", picture=None, sound=lambda t: 0.5 * np.sin(2000 * np.pi * t))
    tone = read(path)[4000:12000]
    reference = 0.5 * torch.sin(2000 * torch.pi * torch.arange(4000, 12000) / SAMPLE_RATE)
    torch.testing.assert_close(tone, reference, atol=0.02, rtol=0)


def test_overlapping_sound(tmp_path):
    """Of two packets for the same 0.2 s, the first counts."""
    path = tmp_path / "overlap.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.layout = "mono"
        for begin, value in ((0.0, 0.25), (0.8, 0.75)):
            samples = np.full((1, 16000), value, np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, round(begin * 16000), Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reference = torch.cat([torch.full((16000,), 0.25), torch.full((12800,), 0.75), torch.zeros(3200)])
    torch.testing.assert_close(read(path, 2), reference, atol=1e-4, rtol=0)


def test_format_changing_within_a_file(tmp_path):
    def part(name, **options):
        return make_video(tmp_path / name, 25, picture=None, **options).read_bytes()

    path = tmp_path / "both.aac"
    path.write_bytes(part("a.aac", sample_rate=48000) + part("b.aac", sample_rate=16000, layout="mono"))
    waveform = read(path, 2.5)
    assert waveform[: SAMPLE_RATE // 10].abs().max() > 0.4
    assert waveform[SAMPLE_RATE : round(1.3 * SAMPLE_RATE)].abs().max() > 0.4


# Reading


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of 3 s, and their whole sound from -1 s to 4 s."""
    folder = tmp_path_factory.mktemp("sound")
    paths = [
        make_video(folder / "film.mp4", 75, size=(32, 16)),
        make_video(folder / "gap.mkv", 75, size=(32, 16), sound_gap=(0.8, 1.4), sound_start=0.2, audio_codec="flac"),
        make_video(folder / "sound.wav", 75, picture=None, audio_codec="pcm_s16le", sample_rate=44100),
    ]
    sources = [*paths, (tone_bursts(np.arange(3 * 44100) / 44100), 44100)]
    whole = []
    for source in sources:
        with open_audio(source) as sound:
            whole.append(sound.read(-SAMPLE_RATE, 4 * SAMPLE_RATE))
    return list(zip(sources, whole, strict=True))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_steps_give_the_same_as_reading_whole(files, data):
    source, whole = data.draw(st.sampled_from(files), label="source")
    sample = st.integers(-SAMPLE_RATE, 4 * SAMPLE_RATE)
    firsts = sorted(data.draw(st.lists(sample, min_size=1, max_size=8), label="firsts"))
    with open_audio(source) as sound:
        for first in firsts:
            last = data.draw(st.integers(first, min(first + 20000, 4 * SAMPLE_RATE)), label="last")
            waveform = sound.read(first, last)
            assert torch.equal(waveform, whole[first + SAMPLE_RATE : last + SAMPLE_RATE])


def test_reading_back_gives_the_same(files):
    for source, _ in files:
        with open_audio(source) as sound:
            early = sound.read(100, 300)
            for ahead in (1000, LOOK_BACK, 5 * LOOK_BACK):
                sound.read(100 + ahead, 200 + ahead)
                assert torch.equal(sound.read(100, 300), early)
            with pytest.raises(ValueError, match="cannot be read"):
                sound.read(300, 299)
        with pytest.raises(ValueError, match="samples 500 to 600"):
            sound.read(500, 600)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.m4a"
    return make_video(path, times=[0, 600], picture=None, sound_duration=600, sample_rate=16000, layout="mono")


def test_memory_does_not_grow(long_file):
    window = 40000
    held = []
    with open_audio(long_file) as sound:
        for first in range(0, 600 * SAMPLE_RATE, SAMPLE_RATE):
            sound.read(first - 8000, first - 8000 + window)
            held.append(sum(len(samples) for _, samples in sound._held))
    assert max(held) < window + LOOK_BACK + 4096


@pytest.mark.parametrize("at", [9, 30, 300.123, 599])
def test_first_read_far_into_a_file_seeks(long_file, monkeypatch, at):
    import diffsal_diffusers.media.container as module

    decoded = []
    original = module._decode_from
    monkeypatch.setattr(
        module, "_decode_from", lambda *args: (decoded.append(frame) or frame for frame in original(*args))
    )
    first = round(at * SAMPLE_RATE)
    with open_audio(long_file) as sound:
        waveform = sound.read(first, first + SAMPLE_RATE)
    reference = torch.from_numpy(tone_bursts((first + np.arange(SAMPLE_RATE)) / SAMPLE_RATE))
    assert_bursts(waveform, reference, tolerance=0.02)
    assert len(decoded) < 200


# Waveforms


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(
    "kind", ["float32", "float64", "float16", "int16", "torch", "torch int16", "stereo", "reversed"]
)
def test_waveform(rate, kind):
    waveform = tone_bursts(np.arange(rate) / rate)
    source = {
        "float32": waveform,
        "float64": waveform.astype(float),
        "float16": waveform.astype(np.float16),
        "int16": np.round(waveform * 2**15).astype(np.int16),
        "torch": torch.from_numpy(waveform),
        "torch int16": torch.from_numpy(np.round(waveform * 2**15).astype(np.int16)),
        "stereo": np.stack([waveform * 1.5, waveform * 0.5]),
        "reversed": waveform[::-1].copy()[::-1],
    }[kind]
    assert_bursts(read((source, rate), 1.5), expected(1.5, end=1))
    assert torch.equal(read(source, sample_rate=rate), read((source, rate)))
    with open_audio((source, rate)) as sound:
        assert sound.end() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((np.zeros((2, 2, 100)), 16000), r"shape \(2, 2, 100\); \(samples,\) or \(channels, samples\)"),
        ((np.zeros((16000, 2)), 16000), r"shape \(16000, 2\)"),
        ((np.zeros(0), 16000), r"shape \(0,\)"),
        ((np.full(100, np.nan), 16000), "values up to nan"),
        ((np.array([0, np.inf]), 16000), "values up to inf"),
        ((np.full(100, 20000.0), 16000), r"values up to 20000; .*\(for 16-bit values: int16\)"),
        ((np.zeros(100, np.int32), 16000), "dtype int32; int16, or floats"),
        ((torch.zeros(100, dtype=torch.int64), 16000), "dtype torch.int64"),
        ((np.zeros(100), 0), "sample_rate: .*a positive integer in Hz, got 0"),
        ((np.zeros(100), None), "sample_rate: .*got None"),
        ((np.zeros(100), 44100.5), "sample_rate: .*got 44100.5"),
        ((np.zeros(100), 44101), "sample_rate: 44101 Hz has too complicated a ratio to 16000 Hz"),
        (np.zeros(100), "sample_rate: a waveform needs its rate"),
        ([0.0, 0.1], "not list"),
        (None, "not NoneType"),
    ],
)
def test_wrong_waveforms(source, message):
    with pytest.raises(InputError, match=message) as caught:
        open_audio(source)
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path):
    with pytest.raises(InputError, match=r"none.wav: there is no such file"):
        open_audio(tmp_path / "none.wav")
    with pytest.raises(InputError, match="is a folder"):
        open_audio(tmp_path)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"text.wav cannot be opened"):
        open_audio(str(tmp_path / "text.wav"))
    silent = make_video(tmp_path / "silent.mp4", 3, sound=None)
    with pytest.raises(InputError, match=r"silent.mp4 has no audio stream"):
        open_audio(silent)
    film = make_video(tmp_path / "film.mp4", 3)
    with pytest.raises(InputError, match=r"sample_rate: .*film.mp4 is a file and has its own"):
        open_audio(film, sample_rate=16000)


@pytest.mark.parametrize(("name", "codec"), [("cut.flac", "flac"), ("cut.mka", "aac")])
def test_file_cut_short_matters_to_who_reads_that_far(tmp_path, name, codec):
    path = make_video(tmp_path / name, 100, picture=None, audio_codec=codec)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with open_audio(path) as sound:
        assert_bursts(sound.read(0, SAMPLE_RATE), expected())
        with pytest.raises(InputError, match=r"cut\..* the audio (stops|cannot be decoded) at \d\.\d\d s"):
            sound.read(0, 4 * SAMPLE_RATE)
        with pytest.raises(InputError, match="damaged or cut short"):
            sound.read(0, 4 * SAMPLE_RATE)
