"""Frames and their times from every kind of source, and one clear sentence for every wrong one."""

import math
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media_files import frame_index, is_upright, make_video, picture, tone_bursts
from PIL import Image

from diffsal_diffusers.errors import InputError
from diffsal_diffusers.media.video import find_sound, has_video, open_video


def read(source, **options):
    with open_video(source, **options) as video:
        return video.info, list(video)


def assert_content(frames, indices, times, tolerance=1e-6):
    assert [frame_index(frame.pixels) for frame in frames] == list(indices)
    assert [frame.time for frame in frames] == pytest.approx(list(times), abs=tolerance)
    for frame in frames:
        assert frame.pixels.dtype == np.uint8 and frame.pixels.flags.c_contiguous and is_upright(frame.pixels)


def truncate(path, to, share):
    """Writes the first `share` of a file."""
    content = path.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to


# Files


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("h264.mkv", {}),
        ("vp9.webm", {"codec": "libvpx-vp9", "audio_codec": "libopus"}),
        ("mjpeg.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p", "audio_codec": "pcm_s16le"}),
        ("odd_size.mkv", {"codec": "ffv1", "pixel_format": "yuv444p", "size": (65, 49)}),
        ("ten_bits.mp4", {"pixel_format": "yuv420p10le"}),
        ("alpha.mkv", {"codec": "ffv1", "pixel_format": "bgra"}),
        ("silent.mp4", {"sound": None}),
        ("no_times.h264", {"sound": None}),
    ],
)
def test_file(tmp_path, name, options):
    path = make_video(tmp_path / name, 12, **options)
    info, frames = read(path)
    assert_content(frames, range(12), [index / 25 for index in range(12)], tolerance=1e-3)
    assert (info.width, info.height) == options.get("size", (64, 48))
    assert info.frame_rate == pytest.approx(25, rel=0.01) and info.pixel_aspect == 1
    assert info.num_frames in (12, None) and info.duration in (pytest.approx(0.48, abs=0.05), None)


def test_grey_file(tmp_path):
    _, frames = read(make_video(tmp_path / "grey.mkv", 3, codec="ffv1", pixel_format="gray"))
    assert [frame_index(frame.pixels) for frame in frames] == [0, 1, 2]
    assert all((frame.pixels == frame.pixels[..., :1]).all() for frame in frames)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    times = [0, 0.04, 0.1, 0.5, 0.55, 1.7]
    _, frames = read(make_video(tmp_path / f"video.{suffix}", times=times))
    assert_content(frames, range(6), times, tolerance=1e-3)


def test_slides_shown_for_seconds_are_not_a_damaged_file(tmp_path):
    info, frames = read(make_video(tmp_path / "slides.mp4", times=[0, 5, 10], sound_duration=10))
    assert_content(frames, range(3), [0, 5, 10])
    assert info.num_frames == 3


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation(tmp_path, rotation):
    # What is stored is turned clockwise, so that a player that turns it counterclockwise shows it upright.
    def stored(index, width, height):
        upright = (width, height) if rotation == 180 else (height, width)
        return np.ascontiguousarray(np.rot90(picture(index, *upright), -rotation // 90))

    path = make_video(
        tmp_path / "phone.mp4", 4, picture=stored, size=(80, 48), rotation=rotation, pixel_aspect=Fraction(4, 3)
    )
    info, frames = read(path)
    assert_content(frames, range(4), [index / 25 for index in range(4)])
    turned = rotation != 180
    assert (info.width, info.height) == ((48, 80) if turned else (80, 48))
    assert frames[0].pixels.shape == (info.height, info.width, 3)
    assert info.pixel_aspect == (Fraction(3, 4) if turned else Fraction(4, 3))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixel_aspect_is_told_and_not_applied(tmp_path, suffix):
    info, frames = read(make_video(tmp_path / f"dv.{suffix}", 2, pixel_aspect=Fraction(16, 15)))
    assert info.pixel_aspect == Fraction(16, 15)
    assert frames[0].pixels.shape == (48, 64, 3)


def test_times_begin_where_the_container_does(tmp_path):
    _, frames = read(make_video(tmp_path / "stream.ts", 25, sound=None))  # its clock begins late
    assert_content(frames, range(25), [index / 25 for index in range(25)])
    _, frames = read(make_video(tmp_path / "late.mkv", times=[0.5, 0.6, 0.7], audio_codec="pcm_s16le"))
    assert_content(frames, range(3), [0.5, 0.6, 0.7], tolerance=1e-3)


def test_swapped_times_are_put_in_order(tmp_path):
    _, frames = read(make_video(tmp_path / "film.avi", 30, sound=None))  # AVI has no times for H.264's order of frames
    assert [frame_index(frame.pixels) for frame in frames] == list(range(30))
    assert all(0.03 < after.time - before.time < 0.2 for before, after in pairwise(frames))
    assert frames[-1].time == pytest.approx(29 / 25, abs=0.13)


@pytest.fixture(scope="module")
def long_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    options = {"mp4": {}, "mkv": {}, "ts": {"keyframe_interval": 60}, "h264": {}}
    return {s: make_video(folder / f"video.{s}", 150, sound=None, **options[s]) for s in options}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "h264"])
@pytest.mark.parametrize(("start", "duration"), [(0, 0.5), (1, 1), (2.41, 0.2), (3.04, None), (5.96, 10)])
def test_part_of_a_file(long_files, suffix, start, duration):
    info, frames = read(long_files[suffix], start=start, duration=duration)
    end = math.inf if duration is None else start + duration
    indices = [index for index in range(150) if start - 1e-6 <= index / 25 < end - 1e-6]
    assert_content(frames, indices, [index / 25 for index in indices], tolerance=1e-3)
    if suffix != "h264":
        assert info.num_frames == pytest.approx(len(indices), abs=1)
        assert info.duration == pytest.approx(min(6 - start, duration or 6), abs=0.04)


def test_a_seek_does_not_decode_from_the_beginning(long_files, monkeypatch):
    import diffsal_diffusers.media.container as module

    decoded = []
    original = module._decode_from
    monkeypatch.setattr(
        module, "_decode_from", lambda *args: (decoded.append(frame) or frame for frame in original(*args))
    )
    read(long_files["mp4"], start=5, duration=0.2)
    assert min(frame.time for frame in decoded) > 4.4


def test_iterations_are_independent_and_can_be_repeated(long_files):
    with open_video(long_files["mp4"], duration=0.2) as video:
        first = iter(video)
        assert frame_index(next(first).pixels) == 0
        assert [frame_index(frame.pixels) for frame in video] == [0, 1, 2, 3, 4]
        assert frame_index(next(first).pixels) == 1
    assert list(first) == []  # closed


def test_size_changing_within_a_file(tmp_path):
    small = make_video(tmp_path / "small.h264", 5, sound=None)
    large = make_video(tmp_path / "large.h264", 5, sound=None, size=(128, 96))
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    info, frames = read(both)
    assert_content(frames, [*range(5), *range(5)], [index / 25 for index in range(10)])
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)} and (info.width, info.height) == (64, 48)


def test_recording_that_begins_between_key_frames(tmp_path):
    path = make_video(tmp_path / "whole.ts", 50, sound=None, keyframe_interval=10)
    content = path.read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    (tmp_path / "part.ts").write_bytes(b"".join(packets[:2] + packets[8:]))
    _, frames = read(tmp_path / "part.ts")
    assert 20 < len(frames) < 50 and frame_index(frames[-1].pixels) == 49


def test_name_that_looks_like_a_url(tmp_path, monkeypatch):
    make_video(tmp_path / "http:name?%03d é.mp4", 2)
    monkeypatch.chdir(tmp_path)
    assert len(read("http:name?%03d é.mp4")[1]) == 2


def test_has_video_and_find_sound(tmp_path):
    film = make_video(tmp_path / "film.mp4", 3)
    silent = make_video(tmp_path / "silent.mp4", 3, sound=None)
    song = make_video(tmp_path / "song.m4a", 3, picture=None)
    assert [has_video(path) for path in (film, silent, song)] == [True, True, False]
    assert [find_sound(path) for path in (str(film), silent, song)] == [film, None, song]
    assert find_sound(np.zeros((1, 2, 2, 3))) is None and find_sound([Image.new("RGB", (4, 4))]) is None

    folder = tmp_path / "folder"
    folder.mkdir()
    assert find_sound(folder) is None
    make_video(folder / "sound.wav", 3, picture=None, audio_codec="pcm_s16le")
    assert find_sound(folder) == folder / "sound.wav"
    make_video(folder / "other.wav", 3, picture=None, audio_codec="pcm_s16le")
    with pytest.raises(InputError, match=r"folder has 2 \.wav files"):
        find_sound(folder)
    for function in (has_video, find_sound, open_video):
        with pytest.raises(InputError, match="File name too long"):
            function("x" * 300)


def test_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("mp3", rate=44100)
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(tone_bursts(np.arange(44100) / 44100)[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 44100, 0, Fraction(1, 44100)
        audio.layout = "mono"
        image = av.VideoFrame.from_ndarray(picture(0), format="rgb24")
        image.pts = 0
        container.mux(cover.encode(image))
        container.mux(cover.encode(None))
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video
    assert not has_video(path) and find_sound(path) == path
    with pytest.raises(InputError, match=r"song.mp3 has no video stream"):
        open_video(path)


# Folders, lists and arrays


def frames_as(kind, folder, count=5, size=(64, 48)):
    pictures = [picture(index, *size) for index in range(count)]
    if kind == "numpy uint8":
        return np.stack(pictures)
    if kind == "numpy float":
        return np.stack(pictures) / 255
    if kind == "numpy float16":
        return (np.stack(pictures) / 255).astype(np.float16)
    if kind == "torch uint8":
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    if kind == "torch float":
        return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255).requires_grad_()
    if kind == "torch bfloat16":
        return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255).bfloat16()
    if kind == "images":
        return [Image.fromarray(pixels) for pixels in pictures]
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"frame_{index + 8}.{kind}")  # 10 sorts behind 9
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame_8.png").write_bytes(b"what a file manager leaves")
    return folder


EXACT = ["numpy uint8", "numpy float", "numpy float16", "torch uint8", "torch float", "images", "png", "bmp", "tif"]


@pytest.mark.parametrize("kind", [*EXACT, "torch bfloat16", "jpg", "webp", "PNG"])
def test_images(tmp_path, kind):
    info, frames = read(frames_as(kind, tmp_path))
    assert_content(frames, range(5), [index / 25 for index in range(5)])
    assert (info.width, info.height, info.frame_rate, info.num_frames, info.duration) == (64, 48, 25, 5, 0.2)
    if kind in EXACT:
        assert all((frame.pixels == picture(index)).all() for index, frame in enumerate(frames))


@given(start=st.floats(0, 0.45), duration=st.none() | st.floats(0.2, 2), fps=st.sampled_from([10, 24, 30000 / 1001]))
def test_part_of_images(start, duration, fps):
    info, frames = read(frames_as("numpy uint8", None, 10), fps=fps, start=start * 10 / fps, duration=duration)
    end = math.inf if duration is None else start * 10 / fps + duration
    indices = [index for index in range(10) if start * 10 - 1e-6 <= index < end * fps - 1e-6]
    assert_content(frames, indices, [index / fps for index in indices])
    assert info.num_frames == len(indices)


def test_image_modes():
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    grey16 = Image.fromarray(np.full((4, 4), 7 * 256 + 200, np.uint16))
    alpha = Image.fromarray(np.full((4, 4, 4), 7, np.uint8))
    palette = grey.convert("P")
    _, frames = read([grey, grey16, alpha, palette])
    assert all((frame.pixels == 7).all() and frame.pixels.shape == (4, 4, 3) for frame in frames)


def test_photos_are_turned_upright():
    image = Image.fromarray(np.ascontiguousarray(np.rot90(picture(3))))
    image.getexif()[0x0112] = 6  # to be turned clockwise
    info, frames = read([image])
    assert_content(frames, [3], [0])
    assert (info.width, info.height) == (64, 48)


def test_pixels_are_copies():
    array = frames_as("numpy uint8", None)
    _, frames = read(array)
    frames[0].pixels[:] = 0
    assert (array[0] == picture(0)).all()


# What is wrong


def test_wrong_files(tmp_path):
    def error(source, **options):
        with pytest.raises(InputError) as caught:
            read(source, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "none.mp4: there is no such file or folder" in error(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "empty.mp4 is empty (0 bytes)" in error(tmp_path / "empty.mp4")
    for name in ("text.mp4", "text.txt", "text"):
        (tmp_path / name).write_text("This is no video.\n" * 100)
        assert f"{name} cannot be opened as video or sound: it is" in error(tmp_path / name)
    (tmp_path / "subtitles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    assert "subtitles.srt has no video stream" in error(tmp_path / "subtitles.srt")
    assert "song.m4a has no video stream" in error(make_video(tmp_path / "song.m4a", 3, picture=None))

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    assert "folder holds no images" in error(folder) and ".png, .jpg" in error(folder)

    path = make_video(tmp_path / "film.mp4", 50)
    assert "film.mp4: the video of 2.00 s has no frame in the selected part, which begins at 2 s" in error(
        path, start=2
    )
    assert "begins at 3000 s" in error(path, start=3000)
    assert "fps: " in error(path, fps=25)
    with pytest.raises(InputError, match="there is no such file"):
        find_sound(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="is a folder"):
        has_video(folder)


def test_mp4_without_index(tmp_path):
    path = truncate(make_video(tmp_path / "film.mp4", 50), tmp_path / "cut.mp4", 0.7)
    with pytest.raises(InputError, match=r"cut.mp4 cannot be opened .*damaged, cut short before its index"):
        open_video(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("film.mp4", {"options": {"movflags": "faststart"}}),
        ("film.mkv", {}),
        ("film.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p", "audio_codec": "pcm_s16le"}),
        ("film.flv", {"codec": "flv1", "audio_codec": "mp3", "sample_rate": 44100}),
    ],
)
def test_file_cut_short(tmp_path, name, options):
    path = truncate(make_video(tmp_path / name, 100, **options), tmp_path / f"cut.{name}", 0.6)
    video = open_video(path)
    good = []
    with pytest.raises(InputError, match=r"cut.* the video stops at \d\.\d\d s, .*--duration can select") as caught:
        for frame in video:
            good.append(frame)
    stop = float(str(caught.value).split(" stops at ")[1].split(" s,")[0])
    assert 1 < stop < 3.7 and good[-1].time == pytest.approx(stop - 0.04, abs=0.01)
    _, selected = read(path, duration=stop)  # what the message advises
    assert_content(selected, [frame_index(frame.pixels) for frame in good], [frame.time for frame in good])
    with pytest.raises(InputError, match="stops at"):
        read(path, start=stop - 0.5)
    with pytest.raises(InputError, match="stops at"):
        read(path, start=3.9)


def test_file_damaged_in_the_middle(tmp_path):
    path = make_video(tmp_path / "film.mp4", 100, sound=None)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos is not None]
        damaged = [packet for packet in packets if 1.5 < packet.pts * packet.time_base < 1.9]
    content = bytearray(path.read_bytes())
    for packet in damaged:
        content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"film.mp4: the video cannot be decoded at 1\.\d\d s"):
        read(path)
    assert_content(read(path, duration=1.4)[1], range(35), [index / 25 for index in range(35)])
    assert frame_index(read(path, start=3)[1][-1].pixels) == 99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start: a number from 0 to a billion is expected, got -1"),
        ({"start": float("nan")}, "start: "),
        ({"start": 1e300}, "start: a number from 0 to a billion is expected, got 1e\\+300"),
        ({"duration": 0}, "duration: a number above 0, at most a billion, is expected, got 0"),
        ({"duration": math.inf}, "duration: "),
        ({"fps": 0}, "fps: a number above 0, at most a billion, is expected, got 0"),
        ({"fps": "25"}, "fps: .* got '25'"),
        ({"start": 0.2}, r"the array has no frame in the selected part.*5 frames at 25 per second end at 0.20 s"),
        ({"start": 0.001, "duration": 0.01}, "no frame in the selected part"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(InputError, match=message):
        open_video(frames_as("numpy uint8", None), **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"NumPy array has shape \(2, 3, 8, 8\).* \(frames, height, width, 3\)"),
        (torch.zeros(2, 8, 8, 3), r"torch tensor has shape \(2, 8, 8, 3\).* \(frames, 3, height, width\)"),
        (np.zeros((8, 8, 3)), r"shape \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3)), r"shape \(0, 8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4)), r"shape \(2, 8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.int64), "dtype int64; uint8, or floating point"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), "dtype torch.int32"),
        (np.full((2, 8, 8, 3), 200.0), "values from 200 to 200; floating point pixels are expected in"),
        (np.full((2, 8, 8, 3), -0.01), "values from -0.01"),
        (np.full((2, 8, 8, 3), np.nan), "values from nan"),
        (torch.full((2, 3, 8, 8), math.inf), "to inf"),
        ([], "the list is empty"),
        ([np.zeros((8, 8, 3))], "item 0 of the list is of type ndarray; PIL images"),
        ([Image.new("F", (4, 4))], "image 0 of the list has 32-bit pixels"),
        (42, "not int"),
        (None, "not NoneType"),
    ],
)
def test_wrong_arrays_and_lists(source, message):
    with pytest.raises(InputError, match=message):
        open_video(source)


def test_images_of_different_sizes(tmp_path):
    images = [Image.new("RGB", (8, 6)), Image.new("RGB", (8, 6)), Image.new("RGB", (10, 6))]
    with pytest.raises(InputError, match="image 2 of the list has 10x6 pixels but the first image has 8x6"):
        read(images)
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match=r"2.png has 10x6 pixels but the first image has 8x6"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_image_in_a_folder(tmp_path, content):
    frames_as("png", tmp_path)
    broken = tmp_path / "frame_10.png"
    broken.write_bytes(broken.read_bytes()[:100] if content is None else content)
    with open_video(tmp_path) as video, pytest.raises(InputError, match=r"frame_10.png cannot be read as an image"):
        list(video)
