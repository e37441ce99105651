"""Clips for training: what the pipeline sees, in any process, whatever is broken."""

import pickle
import shutil

import dataset_trees as trees
import numpy as np
import pytest
import torch
from dataset_trees import HEIGHT, WIDTH, place
from hypothesis import given
from hypothesis import strategies as st
from media_files import frame_index, make_video
from torch.utils.data import DataLoader

from diffsal_diffusers import InputError, SaliencyProcessor
from diffsal_diffusers.data import SaliencyClips, load_saliency_dataset, open_recording
from diffsal_diffusers.data.files import move_points
from diffsal_diffusers.media.audio import open_audio
from diffsal_diffusers.media.video import open_video
from diffsal_diffusers.media.windows import clip_windows

PROCESSOR = SaliencyProcessor(
    frame_size=(64, 96), num_frames=5, target_frame=2, audio_slices=3, audio_size=(16, 16)
)  # twice the size of the frames, so that what they show can be read


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two audio-visual videos of six and four frames."""
    return trees.audio_visual(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def broken(tree, tmp_path):
    """A copy of the tree to break."""
    return shutil.copytree(tree, tmp_path / "broken")


def clips_of(root, **settings):
    return SaliencyClips(load_saliency_dataset("AVAD", root, fold=1), PROCESSOR, **settings)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def test_an_item(tree):
    clips = clips_of(tree)
    assert len(clips) == 10
    for index, (video, frames, target) in enumerate([*(("clip one", 6, i) for i in range(6)), ("clip2", 4, 0)]):
        item = clips[index]
        assert item["video_id"] == video and item["dataset"] == "AVAD" and item["frame_index"] == target
        assert item["fps"] == 25.0
        assert item["frames"].shape == (5, 3, 64, 96) and item["frames"].dtype == torch.uint8
        shown = [frame_index(frame.permute(1, 2, 0).numpy()) for frame in item["frames"]]
        assert shown == [min(max(i, 0), frames - 1) for i in range(target - 2, target + 3)]
        assert item["log_mel"].shape == (1, 3, 16, 16) and item["log_mel"].dtype == torch.float32
        assert item["has_audio"] is True and item["log_mel"].abs().max() > 0
        saliency, fixations = item["saliency"], item["fixations"]
        assert saliency.shape == (1, 64, 96) and saliency.dtype == torch.float32
        assert saliency.max() == 1 and saliency.min() >= 0
        row, column = (2 * c + 1 for c in place(target))
        peak = divmod(int(saliency.argmax()), 96)
        assert peak == pytest.approx((row, column), abs=1.01)
        assert fixations.dtype == torch.bool and fixations.nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("kind", ["frames", "file", "late"])
@pytest.mark.parametrize(
    ("alignment", "interval"), [("clip", 1), ("clip", 3), ("released", 1), ("mirror", 1), ("mirror", 2)]
)
def test_training_sees_what_the_pipeline_sees(kind, alignment, interval, tmp_path):
    config = {**PROCESSOR.config, "frame_interval": interval}
    if alignment == "mirror":  # without sound
        config |= {"clip_start": "mirror", "target_frame": PROCESSOR.config.num_frames - 1, "audio_slices": 0}
    else:
        config |= {"audio_alignment": alignment}
    processor = SaliencyProcessor(**config)
    if kind == "frames":
        trees.audio_visual(tmp_path, lists={("train", 1): {"a": 40}}, fps=23.976)
        entries = load_saliency_dataset("AVAD", tmp_path, fold=1)
    else:
        (tmp_path / "videos").mkdir()
        times = np.arange(40) / 25 if kind == "file" else 0.3 + np.cumsum([0.04, 0.08, 0.04, 0.2] * 10)
        make_video(tmp_path / "videos" / "a.mkv", times=times, size=(WIDTH, HEIGHT), audio_codec="pcm_s16le")
        trees.save_table(tmp_path / "fixations.csv", ("video", "x", "y", "frame"), [("a", 1, 1, 0)])
        entries = load_saliency_dataset("folder", tmp_path, "test")
    media = open_recording(entries[0]).media()
    source = open_video(media["video"], fps=media["fps"])
    frames = ((frame.time, processor.preprocess_frame(frame.pixels)) for frame in source)
    clips = SaliencyClips(entries, processor)
    assert len(clips) == 40
    windows = clip_windows(frames, **processor.clip_settings)
    for window in windows:
        item = clips[window.target.index]
        assert torch.equal(item["frames"], torch.stack([frame.content for frame in window.frames]))
        if window.target.index % 5 == 0 and processor.config.audio_slices:
            with open_audio(media["audio"] or media["video"]) as sound:
                log_mel = processor.log_mel_slices(sound, [window.frame_times])[0]
            torch.testing.assert_close(item["log_mel"], log_mel, atol=1e-5, rtol=1e-5)


def test_items_make_a_batch(tree, tmp_path):
    """Also of several data sets, with and without sound, with streamed rows."""
    trees.dhf1k_frames(tmp_path / "silent", {1: 3})
    trees.osie(tmp_path / "stills", (1001,))
    entries = [
        *load_saliency_dataset("AVAD", tree, fold=1, streaming=True),
        *load_saliency_dataset("DHF1K", tmp_path / "silent", streaming=True),
        *load_saliency_dataset("OSIE", tmp_path / "stills"),
    ]
    clips = SaliencyClips(entries, PROCESSOR)
    assert len(clips) == 10 + 3 + 16
    (batch,) = DataLoader(clips, batch_size=len(clips))
    assert batch["frames"].shape == (29, 5, 3, 64, 96) and batch["saliency"].shape == (29, 1, 64, 96)
    assert batch["has_audio"].dtype == torch.bool and batch["has_audio"].tolist() == [True] * 10 + [False] * 19
    assert torch.all(batch["log_mel"][10:] == 0) and torch.all(batch["log_mel"][:10].abs().amax((1, 2, 3, 4)) > 0)
    assert not batch["fixations"][10:13].any()  # the set has none
    assert batch["fixations"][13:].any(dim=(1, 2)).all()
    assert batch["dataset"] == ["AVAD"] * 10 + ["DHF1K"] * 3 + ["OSIE"] * 16
    assert batch["frame_index"].tolist() == [*range(6), *range(4), *range(3), *range(16)]
    assert batch["fps"].tolist() == [25.0] * 10 + [30.0] * 3 + [25.0] * 16


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 100])
def test_strides(stride, tree):
    clips = clips_of(tree, stride=stride)
    expected = [("clip one", i) for i in range(0, 6, stride)] + [("clip2", i) for i in range(0, 4, stride)]
    assert [(item["video_id"], item["frame_index"]) for item in clips] == expected
    assert_same(clips[-1], clips[len(clips) - 1])
    with pytest.raises(IndexError, match=f"there are {len(clips)} clips"):
        clips[len(clips)]
    with pytest.raises(InputError, match="`stride` must be at least 1, got 0"):
        clips_of(tree, stride=0)
    with pytest.raises(InputError, match="there are no clips"):
        SaliencyClips([], PROCESSOR)


def test_where_nobody_looked_the_map_is_zero(tmp_path):
    trees.own_folder(tmp_path, "frame", {"a": 3})
    trees.save_table(tmp_path / "fixations.csv", ("video", "x", "y", "frame"), [("a", 20.5, 10.5, 1)])
    clips = SaliencyClips(load_saliency_dataset("folder", tmp_path, "test"), PROCESSOR)
    assert [item["saliency"].max().item() for item in clips] == [0, 1, 0]
    assert [item["fixations"].nonzero().tolist() for item in clips] == [[], [[21, 41]], []]


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    data=st.data(),
)
def test_points_move_and_none_gets_lost(size, target, data):
    row, column = (data.draw(st.integers(0, side - 1)) for side in size)
    fixations = torch.zeros(size, dtype=torch.bool)
    fixations[row, column] = True
    ((moved_row, moved_column),) = move_points(fixations, target).nonzero().tolist()
    for moved, old, side, new in zip((moved_row, moved_column), (row, column), size, target, strict=True):
        assert moved <= (old + 0.5) * new / side <= moved + 1 + 1e-9


class TestBrokenFiles:
    FILES = {
        "frame": ("video_frames/AVAD/clip one/img_00006.jpg", {3, 4, 5}),
        "map": ("annotations/AVAD/clip one/maps/eyeMap_00002.jpg", {1}),
        "fixations": ("annotations/AVAD/clip one/fixMap_00006.mat", {5}),
        "sound": ("video_audio/AVAD/clip one/clip one.wav", {0, 1, 2, 3, 4, 5}),
    }

    @pytest.mark.parametrize("kind", FILES)
    def test_the_next_good_clip_takes_the_place(self, kind, tree, broken, caplog):
        file, bad = self.FILES[kind]
        (broken / file).write_bytes(b"broken")
        whole, clips = clips_of(tree), clips_of(broken)
        for _ in range(2):
            for index in reversed(range(len(whole))):
                good = index
                while good in bad:
                    good = (good + 1) % len(whole)
                assert_same(clips[index], whole[good])
        (warning,) = caplog.messages  # named once
        assert str(broken / file) in warning
        caplog.clear()
        assert clips.skipped == clips.report_skipped() == 2 * len(bad)
        assert caplog.messages == [f"{2 * len(bad)} clips were skipped because their files are broken"]
        assert whole.report_skipped() == 0

    @pytest.mark.parametrize("kind", FILES)
    def test_strictly(self, kind, broken):
        file, bad = self.FILES[kind]
        (broken / file).write_bytes(b"broken")
        clips = clips_of(broken, strict=True)
        for index in range(len(clips)):
            if index in bad:
                with pytest.raises(InputError, match=file.split("/")[-1]):
                    clips[index]
            else:
                assert clips[index]["frame_index"] == index % 6

    def test_the_last_clip_gives_way_to_the_first(self, tree, broken):
        (broken / "annotations" / "AVAD" / "clip2" / "maps" / "eyeMap_00004.jpg").unlink()
        assert_same(clips_of(broken)[9], clips_of(tree)[0])

    def test_all_broken(self, broken):
        for file in broken.glob("video_audio/AVAD/*/*.wav"):
            file.write_bytes(b"broken")
        clips = clips_of(broken)
        for index in (3, 0):
            with pytest.raises(InputError, match=r"none of the 10 clips can be read; .*\.wav cannot be opened"):
                clips[index]

    def test_a_video_whose_length_cannot_be_told(self, tmp_path, caplog):
        trees.own_folder(tmp_path, "frame", {"a": 3, "b": 2})
        (tmp_path / "videos" / "a.mp4").write_bytes(b"broken")
        entries = load_saliency_dataset("folder", tmp_path, "test")
        clips = SaliencyClips(entries, PROCESSOR)
        assert [(item["video_id"], item["frame_index"]) for item in clips] == [("b", 0), ("b", 1)]
        assert clips.skipped == 1 and "a.mp4" in caplog.text
        with pytest.raises(InputError, match=r"a.mp4 cannot be opened"):
            SaliencyClips(entries, PROCESSOR, strict=True)
        (tmp_path / "videos" / "b.mp4").write_bytes(b"broken")
        with pytest.raises(InputError, match="none of the 2 videos has a frame to be read"):
            SaliencyClips(entries, PROCESSOR)


class TestWorkers:
    @pytest.fixture(scope="class")
    @classmethod
    def mixed(cls, tmp_path_factory):
        """Entries of a folder of frames with a broken map, of a video file, of stills."""
        root = tmp_path_factory.mktemp("mixed")
        trees.audio_visual(root / "frames")
        (root / "frames" / "annotations" / "AVAD" / "clip one" / "maps" / "eyeMap_00002.jpg").unlink()
        trees.own_folder(root / "files", "frame", {"a": 5})
        trees.osie(root / "stills", (1001,))
        return [
            *load_saliency_dataset("AVAD", root / "frames", fold=1),
            *load_saliency_dataset("folder", root / "files", "test"),
            *load_saliency_dataset("OSIE", root / "stills"),
        ]

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_items_are_the_same_in_any_process(self, start, mixed):
        clips, workers_clips = SaliencyClips(mixed, PROCESSOR), SaliencyClips(mixed, PROCESSOR)
        order = [12, 1, 30, 3, 11, 14, 1, 0, 10, 25, 13, 7]
        workers_clips[13], clips[11]  # a video file that is open here must not disturb the workers
        skipped = workers_clips.skipped
        loader = DataLoader(
            workers_clips, batch_size=3, sampler=order, num_workers=2, multiprocessing_context=start, timeout=100
        )
        batches = list(loader)
        for batch, expected in zip(batches, DataLoader(clips, batch_size=3, sampler=order), strict=True):
            assert_same(batch, expected)
        assert [i for batch in batches for i in batch["frame_index"].tolist()][:2] == [2, 2]
        # The broken map belongs to clip 1, asked for twice; the workers count for all to see.
        assert workers_clips.report_skipped() - skipped == clips.skipped == 2

    def test_strictness_reaches_the_main_process(self, mixed):
        clips = SaliencyClips(mixed, PROCESSOR, strict=True)
        loader = DataLoader(clips, sampler=[0, 1], num_workers=1, multiprocessing_context="spawn", timeout=100)
        with pytest.raises(InputError, match=r"eyeMap_00002.jpg"):
            list(loader)

    def test_they_are_plain_data_also_after_use(self, mixed):
        clips = SaliencyClips(mixed, PROCESSOR)
        for index in (0, 12, 20):
            assert_same(pickle.loads(pickle.dumps(clips))[index], clips[index])
