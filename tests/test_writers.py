import csv
import errno
import resource
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import make_video
from PIL import Image

from diffsal_diffusers.errors import InputError
from diffsal_diffusers.media.attention import attention_statistics
from diffsal_diffusers.media.writers import (
    AttentionWriter,
    HeatmapWriter,
    MapsWriter,
    OverlayWriter,
    complete_path,
)

WRITERS = [
    (OverlayWriter, "clip_overlay.mp4"),
    (HeatmapWriter, "clip_saliency.mp4"),
    (MapsWriter, "clip_saliency"),
    (AttentionWriter, "clip_attention.csv"),
]
all_writers = pytest.mark.parametrize(("writer_class", "name"), WRITERS)
FLASH = 1.6  # seconds: when the test media flash and click


def blob(height, width, x, y, sigma=6.0):
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)).astype(np.float32)


def grey(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def write_frames(writer, count=3, height=32, width=48):
    for index in range(count):
        writer.write(index / 25, blob(height, width, 10 + index, 12), grey(height, width))


def decoded(path, kind="video"):
    """All frames of a stream, and their times on the media's time line."""
    with av.open(str(path)) as container:
        frames = list(container.decode(**{kind: 0}))
        return frames, [float(frame.time - container.start_time / av.time_base) for frame in frames]


def make_media(path, sound_codec, picture_starts=0.0, sound_starts=0.0, seconds=3.0):
    """A black video and a silent track with one white frame and one click, both at FLASH on the file's time line."""
    rate, sample_rate = 25, 48_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        video.width = video.height = 32
        sound = container.add_stream(sound_codec, rate=sample_rate, layout="stereo")
        for index in range(round(picture_starts * rate), round(seconds * rate)):
            picture = av.VideoFrame.from_ndarray(grey(32, 32, 255 * (index == round(FLASH * rate))), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, rate)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        samples = np.zeros((2, round(seconds * sample_rate)), np.float32)
        click = round(FLASH * sample_rate)
        samples[:, click : click + 480] = 0.8 * np.sin(np.arange(480) * 2 * np.pi * 1000 / sample_rate)
        for begin in range(round(sound_starts * sample_rate), samples.shape[1], 960):
            part = av.AudioFrame.from_ndarray(samples[:, begin : begin + 960].copy(), format="fltp", layout="stereo")
            part.pts, part.time_base, part.sample_rate = begin, Fraction(1, sample_rate), sample_rate
            container.mux(sound.encode(part))
        container.mux(sound.encode())
    return path


def flash_and_click(path):
    """When the picture turns white and when the sound begins, in seconds on the file's time line."""
    pictures, times = decoded(path)
    flash = times[[picture.to_ndarray("gray").mean() > 128 for picture in pictures].index(True)]
    for part, time in zip(*decoded(path, "audio"), strict=True):
        samples = part.to_ndarray()
        samples = samples[0] if part.format.is_planar else samples[0, :: part.layout.nb_channels]
        loud = np.abs(samples) > 0.2 * (np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1)
        if loud.any():
            return flash, time + int(loud.argmax()) / part.sample_rate
    raise AssertionError("there is no click")


def write_overlay(path, media, start=0.0, end=np.inf):
    pictures, times = decoded(media)
    with OverlayWriter(path, sound=media, start=start) as writer:
        for picture, time in zip(pictures, times, strict=True):
            if start <= time < end:
                frame = picture.to_ndarray(format="rgb24")
                writer.write(time, np.zeros(frame.shape[:2], np.float32), frame)


@all_writers
def test_writers_publish_at_the_end(writer_class, name, tmp_path):
    path = tmp_path / "new" / "folders" / name
    with writer_class(path) as writer:
        write_frames(writer)
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]


@all_writers
@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, OSError(errno.EIO, "from the video")])
@pytest.mark.parametrize("frames", [0, 3])
def test_an_exception_removes_everything(writer_class, name, exception, frames, tmp_path):
    kind = exception if isinstance(exception, type) else type(exception)
    with pytest.raises(kind), writer_class(tmp_path / name) as writer:
        write_frames(writer, frames)
        raise exception
    assert list(tmp_path.iterdir()) == []


@all_writers
def test_no_frame_no_file(writer_class, name, tmp_path):
    with pytest.raises(InputError, match="no frame"), writer_class(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@all_writers
def test_an_earlier_output_is_replaced_on_success_only(writer_class, name, tmp_path):
    path = tmp_path / name

    def content():
        return {entry.name: entry.read_bytes() for entry in ([path] if path.is_file() else sorted(path.iterdir()))}

    with writer_class(path) as writer:
        write_frames(writer, 5)
    earlier = content()
    with pytest.raises(RuntimeError), writer_class(path) as writer:
        write_frames(writer, 2)
        raise RuntimeError
    assert content() == earlier
    with writer_class(path) as writer:
        write_frames(writer, 2)
    assert content() != earlier
    assert list(tmp_path.iterdir()) == [path]
    if writer_class is MapsWriter:
        assert sorted(content()) == ["00000.png", "00001.png"]


@all_writers
def test_a_folder_of_somebody_else_is_not_replaced(writer_class, name, tmp_path):
    note = tmp_path / name / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(InputError, match="other than numbered PNG"), writer_class(tmp_path / name) as writer:
        write_frames(writer)
    assert note.read_text() == "mine"


@all_writers
@pytest.mark.parametrize("folder", ["taken", "taken/deeper", "x" * 300])
def test_a_folder_that_cannot_be(writer_class, name, folder, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=name), writer_class(tmp_path / folder / name):
        pytest.fail("the writer opened")


@contextmanager
def small_disk(limit):
    """No file of this process may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@all_writers
@pytest.mark.parametrize("missing_bytes", [1, 1000, 10**6])
def test_full_disk(writer_class, name, missing_bytes, tmp_path):
    """A limit on the size of files stands for a full disk: at the very end, on the way, and at the first byte."""

    def write(path):
        random = np.random.default_rng(0)
        with writer_class(path) as writer:
            for index in range(8):
                saliency = random.random((64, 64), np.float32)
                writer.write(index / 25, saliency, random.integers(0, 255, (64, 64, 3), np.uint8))

    whole, path = tmp_path / "whole" / name, tmp_path / "limited" / name
    write(whole)
    size = max(file.stat().st_size for file in [whole, *whole.glob("*")] if file.is_file())
    with small_disk(max(size - missing_bytes, 0)), pytest.raises(InputError) as raised:
        write(path)
    assert str(raised.value) == f"cannot write {path}: File too large"
    assert list(path.parent.iterdir()) == []


def test_complete_path_of_a_file(tmp_path):
    path = tmp_path / "table.csv"
    with complete_path(path) as temporary:
        assert temporary.name == path.name and temporary.parent.parent == tmp_path
        temporary.write_text("done")
    assert path.read_text() == "done" and list(tmp_path.iterdir()) == [path]


@all_writers
@pytest.mark.parametrize("bad", [np.zeros(4), np.full((4, 4), 1.5), np.full((4, 4), -0.5), np.full((4, 4), np.nan)])
def test_what_is_no_map_is_refused(writer_class, name, bad, tmp_path):
    with pytest.raises(InputError), writer_class(tmp_path / name) as writer:
        writer.write(0.0, bad.astype(np.float32), grey(4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer_class", [OverlayWriter, HeatmapWriter])
def test_times_that_do_not_increase_and_sizes_that_change_are_refused(writer_class, tmp_path):
    with pytest.raises(InputError, match="increase"), writer_class(tmp_path / "clip.mp4") as writer:
        writer.write(0.5, blob(16, 16, 8, 8), grey(16, 16))
        writer.write(0.5, blob(16, 16, 8, 8), grey(16, 16))
    with pytest.raises(InputError, match="size"), writer_class(tmp_path / "clip.mp4") as writer:
        writer.write(0.0, blob(16, 16, 8, 8), grey(16, 16))
        writer.write(0.5, blob(16, 18, 8, 8), grey(16, 18))
    assert list(tmp_path.iterdir()) == []


def test_maps_are_exact(tmp_path):
    maps = np.random.default_rng(0).random((2, 7, 5), np.float32)
    maps[0, 0, :2] = 0, 1
    with MapsWriter(tmp_path / "maps") as writer:
        for index, saliency in enumerate(maps):
            writer.write(index / 25, saliency)
    for index, saliency in enumerate(maps):
        with Image.open(tmp_path / "maps" / f"{index:05d}.png") as image:
            assert image.mode == "I;16"
            np.testing.assert_array_equal(np.asarray(image), np.round(65535 * saliency))


def test_table_of_attention(tmp_path):
    maps = [blob(100, 120, 50.25, 40, 5), np.zeros((100, 120), np.float32), blob(100, 120, 70, 60, 8)]
    with AttentionWriter(tmp_path / "table.csv") as writer:
        for index, saliency in enumerate(maps):
            writer.write(2 + index / 30, saliency)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "frame,time_s,peak_x,peak_y,centroid_x,centroid_y,spread_px,entropy_bits"
    assert ",".join(rows[0]) == columns
    for index, (row, saliency) in enumerate(zip(rows, maps, strict=True)):
        values = [float(value) for value in row.values()]
        np.testing.assert_allclose(values, [index, 2 + index / 30, *attention_statistics(saliency)], atol=1e-4)
    assert float(rows[0]["centroid_x"]) == pytest.approx(50.25, abs=1e-3)
    assert float(rows[2]["spread_px"]) == pytest.approx(np.sqrt(2) * 8, abs=1e-3)
    assert float(rows[2]["entropy_bits"]) == pytest.approx(np.log2(2 * np.pi * np.e * 64), abs=1e-3)


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (2, 2), (1, 1), (1, 30)])
def test_grey_video_gives_the_maps_back(size, tmp_path):
    maps = [blob(*size, 10 + 3 * index, 12) * (1 - 0.1 * index) for index in range(6)]
    with HeatmapWriter(tmp_path / "grey.mp4") as writer:
        for index, saliency in enumerate(maps):
            writer.write(index / 25, saliency)
    frames, _ = decoded(tmp_path / "grey.mp4")
    assert len(frames) == len(maps)
    for frame, saliency in zip(frames, maps, strict=True):
        assert (frame.height, frame.width) == size
        assert frame.format.name in ("yuv420p10le", "gray10le") and frame.color_range == 2  # full
        luma = np.frombuffer(frame.planes[0], np.uint16).reshape(size[0], -1)[:, : size[1]]
        assert np.abs(luma / 1023 - saliency).max() < 0.01
        assert np.abs(luma / 1023 - saliency).mean() < 0.002


@pytest.mark.parametrize("writer_class", [OverlayWriter, HeatmapWriter])
@pytest.mark.parametrize(
    "times", [[0.0], [0, 0.04, 0.08, 0.12], [0, 0.033, 0.1, 0.5, 0.516, 1.25], [i * 1001 / 60000 for i in range(40)]]
)
def test_presentation_times_are_kept(writer_class, times, tmp_path):
    path = tmp_path / "clip.mp4"
    for start, shift, expected_shift in [(0.0, 0.0, 0.0), (5.0, 5.01, 0.0)]:
        with writer_class(path, start=start) as writer:
            for time in times:
                writer.write(time + shift, blob(16, 16, 8, 8), grey(16, 16))
        _, found = decoded(path)
        np.testing.assert_allclose(found, np.array(times) + expected_shift, atol=2e-5)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            last = times[-1] - times[-2] if len(times) > 1 else 0.04
            assert float(stream.duration * stream.time_base) == pytest.approx(times[-1] + last, abs=2e-3)


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (3, 2), (35, 51), (48, 64)])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(16, 15)])
def test_overlay_of_any_size(size, aspect, tmp_path):
    frame = np.random.default_rng(0).integers(60, 180, (*size, 1), np.uint8).repeat(3, axis=2)
    with OverlayWriter(tmp_path / "overlay.mp4", pixel_aspect=aspect) as writer:
        writer.write(0.0, np.zeros(size, np.float32), frame)
    (decoded_frame,), _ = decoded(tmp_path / "overlay.mp4")
    height, width = size
    assert (decoded_frame.height, decoded_frame.width) == (height + height % 2, width + width % 2)
    found = decoded_frame.to_ndarray(format="rgb24")[:height, :width]
    assert np.abs(found.astype(float) - frame).mean() < 12  # noise at a usual quality: a map of zeros adds nothing
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == aspect


@pytest.mark.parametrize("peak", [1.0, 1e-3, 1e-40])
def test_overlay_shows_heat_at_the_peak_whatever_its_height(peak, tmp_path):
    saliency = blob(120, 160, 40, 60, 10) * np.float32(peak)
    with OverlayWriter(tmp_path / "overlay.mp4") as writer:
        for index in range(3):
            writer.write(index / 25, saliency, grey(120, 160))
    frames, _ = decoded(tmp_path / "overlay.mp4")
    red, green, blue = frames[-1].to_ndarray(format="rgb24").astype(float).transpose(2, 0, 1)
    assert red[60, 40] > 180 and green[60, 40] > 180 and blue[60, 40] < 90  # yellow
    assert red[60, 54] > green[60, 54] + 20  # purple to red around it
    np.testing.assert_allclose([red[60, 140], green[60, 140], blue[60, 140]], 90, atol=4)


def test_overlay_needs_the_frame(tmp_path):
    for frame in (None, grey(4, 6), grey(4, 4).astype(np.float32)):
        with pytest.raises(InputError, match="uint8 RGB"), OverlayWriter(tmp_path / "overlay.mp4") as writer:
            writer.write(0.0, np.zeros((4, 4), np.float32), frame)


SOUNDS = [  # file, codec of the sound, codec in the overlay
    ("clip.mp4", "aac", "aac"),
    ("clip.ts", "aac", "aac"),
    ("clip.mkv", "aac", "aac"),
    ("clip.mkv", "libopus", "opus"),
    ("clip.mkv", "flac", "flac"),
    ("clip.mp4", "libmp3lame", "mp3"),
    ("clip.mp4", "ac3", "ac3"),
    ("clip.mov", "alac", "alac"),
    ("clip.mkv", "pcm_f32le", "aac"),
    ("clip.ts", "mp2", "aac"),
]


@pytest.mark.parametrize(("name", "codec", "written"), SOUNDS)
@pytest.mark.parametrize(
    ("start", "picture_starts", "sound_starts"), [(0, 0, 0), (1.3, 0, 0), (0, 0, 0.32), (0, 0.32, 0), (1.3, 0, 0.32)]
)
def test_sound_and_picture_stay_in_step(name, codec, written, start, picture_starts, sound_starts, tmp_path):
    media = make_media(tmp_path / name, codec, picture_starts, sound_starts)
    write_overlay(tmp_path / "overlay.mp4", media, start, end=2.6)
    flash, click = flash_and_click(media)
    shift = min(time for time in decoded(media)[1] if time >= start) if start else 0.0
    found_flash, found_click = flash_and_click(tmp_path / "overlay.mp4")
    assert found_flash == pytest.approx(flash - shift, abs=0.002)
    assert found_click == pytest.approx(click - shift, abs=0.012)  # half a packet: not one of them is lost
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        sound, video = container.streams.audio[0], container.streams.video[0]
        assert sound.codec_context.codec.canonical_name == written
        sound_end = (sound.start_time + sound.duration) * sound.time_base
        video_end = (video.start_time + video.duration) * video.time_base
        assert abs(sound_end - video_end) < 0.03


def test_sound_of_a_clip_is_not_longer_than_the_picture(tmp_path):
    media = make_media(tmp_path / "clip.mp4", "aac")
    write_overlay(tmp_path / "overlay.mp4", media, start=0.5, end=1.0)
    heard = sum(part.samples for part in decoded(tmp_path / "overlay.mp4", "audio")[0]) / 48_000
    assert heard == pytest.approx(0.5, abs=0.045)  # a packet at either end


def test_media_without_sound_give_a_silent_overlay(tmp_path):
    with HeatmapWriter(tmp_path / "silent.mp4") as writer:
        write_frames(writer)
    with OverlayWriter(tmp_path / "overlay.mp4", sound=tmp_path / "silent.mp4") as writer:
        write_frames(writer)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize("content", [None, b"no media file"])
def test_sound_that_cannot_be_read(content, tmp_path):
    if content is not None:
        (tmp_path / "sound.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"sound of .*sound\.mp4"):
        with OverlayWriter(tmp_path / "overlay.mp4", sound=tmp_path / "sound.mp4") as writer:
            write_frames(writer)
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if content is None else ["sound.mp4"])


def test_sound_under_a_name_that_looks_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "12:30.mp4", 3)
    with OverlayWriter("overlay.mp4", sound="12:30.mp4") as writer:
        write_frames(writer)
    with av.open("overlay.mp4") as container:
        assert container.streams.audio


def test_sound_of_an_unknown_codec_is_refused(tmp_path):
    make_video(tmp_path / "clip.mkv", 3)
    data = (tmp_path / "clip.mkv").read_bytes()
    assert data.count(b"A_AAC") == 1
    (tmp_path / "clip.mkv").write_bytes(data.replace(b"A_AAC", b"A_ZZZ"))
    with (
        pytest.raises(InputError, match="no decoder"),
        OverlayWriter(tmp_path / "o.mp4", sound=tmp_path / "clip.mkv") as w,
    ):
        write_frames(w)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]
