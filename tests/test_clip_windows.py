"""Clip windows over a stream, against the plain definition on the whole list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsal_diffusers.media.windows import clip_windows


@given(
    total=st.integers(0, 60), num_frames=st.integers(1, 16), data=st.data(), stride=st.integers(1, 20),
    interval=st.integers(1, 5),
)  # fmt: skip
def test_windows_are_those_of_the_whole_video(total, num_frames, data, stride, interval):
    target_frame = data.draw(st.integers(0, num_frames - 1))
    frames = [(i / 25, f"frame {i}") for i in range(total)]
    windows = list(clip_windows(iter(frames), num_frames, target_frame, stride, interval))

    targets = sorted({*range(0, total, stride), *([total - 1] if total else [])})
    assert [w.target.index for w in windows] == targets
    for window in windows:
        wanted = [window.target.index + (k - target_frame) * interval for k in range(num_frames)]
        expected = [min(max(i, 0), total - 1) for i in wanted]
        if len(set(expected)) > 1:
            assert window.frame_times == pytest.approx([i / 25 for i in wanted])
        assert [frame.index for frame in window.frames] == expected
        assert [frame.content for frame in window.frames] == [f"frame {i}" for i in expected]
    assert [time for window in windows for time in window.times] == [time for time, _ in frames]
    assert all(window.times[-1] == window.target.time for window in windows)


@given(
    total=st.integers(0, 60), num_frames=st.integers(1, 16), stride=st.integers(1, 20), interval=st.integers(1, 4),
)  # fmt: skip
def test_clips_that_run_backwards_at_the_beginning(total, num_frames, stride, interval):
    """The target comes last in every clip; where it has too few frames before it, those after it come first."""
    held = []

    def frames():
        for i in range(total):
            held.append(i)
            yield i / 25, f"frame {i}"

    length = (num_frames - 1) * interval
    windows = []
    for window in clip_windows(frames(), num_frames, num_frames - 1, stride, interval, mirrored=True):
        target = window.target.index
        if target <= total - 1 - length:  # read no further than needed
            assert held[-1] <= max(target, min(target, length - 1) + length)
        windows.append(window)
    targets = sorted({*range(0, total, stride), *([total - 1] if total else [])})
    assert [w.target.index for w in windows] == targets
    for window in windows:
        target = window.target.index
        if target >= length:
            wanted = list(range(target - length, target + 1, interval))
        else:
            wanted = list(range(target, target + length + 1, interval))[::-1]
        assert [frame.index for frame in window.frames] == [min(i, total - 1) for i in wanted]
        assert window.frames[-1] == window.target
    assert [time for window in windows for time in window.times] == [i / 25 for i in range(total)]


@given(stride=st.integers(1, 40))
def test_a_stream_is_read_no_further_than_needed(stride):
    read = []

    def frames():
        for i in range(200):
            read.append(i)
            yield i / 25, None

    for window in clip_windows(frames(), num_frames=16, target_frame=8, stride=stride):
        if window.target.index + 7 < 199:
            assert read[-1] == window.target.index + 7


def test_time_goes_on_where_a_frame_stands_in_for_others():
    windows = list(clip_windows(((i / 10, None) for i in range(4)), num_frames=6, target_frame=3))
    for target, window in enumerate(windows):
        assert window.frame_times == pytest.approx([(target - 3 + k) / 10 for k in range(6)])
    (single,) = clip_windows([(0.7, None)], num_frames=6, target_frame=3)
    assert single.frame_times == [0.7] * 6
