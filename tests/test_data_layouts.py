"""The layouts that data sets come in: what is listed, what opens, how frames and ground truth go together."""

import builtins
import inspect
import shutil

import av
import dataset_trees as trees
import datasets
import numpy as np
import pytest
import scipy.sparse
import torch
from dataset_trees import HEIGHT, WIDTH, place
from media_files import frame_index, make_video
from PIL import Image
from scipy.io import savemat

from diffsal_diffusers import InputError
from diffsal_diffusers.data import (
    SALIENCY_DATASETS,
    SyntheticScene,
    fixation_density,
    list_saliency_datasets,
    load_saliency_dataset,
    open_recording,
    register_dataset,
    registry,
)
from diffsal_diffusers.data.recordings import frame_times
from diffsal_diffusers.media.audio import SAMPLE_RATE, open_audio
from diffsal_diffusers.media.video import open_video

# How to make it: its name, split and fold, the frames of its videos, its frame rate, and whether there is sound.
LAYOUTS = {
    "AVAD": (trees.audio_visual, "AVAD", "train", 1, {"clip one": 6, "clip2": 4}, 25, True),
    "AVAD, test": (trees.audio_visual, "AVAD", "test", 1, {"clip_3": 5}, 25, True),
    "DHF1K, frames": (
        lambda root: trees.dhf1k_frames(root, {600: 2, 601: 12, 700: 3, 701: 1}),
        "DHF1K", "validation", None, {"601": 12, "700": 3}, 30, False,
    ),
    "DHF1K, annotation/images": (
        lambda root: trees.dhf1k_annotation(root, {1: 4, 601: 2}, "images"),
        "DHF1K", "train", None, {"0001": 4}, 30, False,
    ),
    "DHF1K, annotation and frames": (
        lambda root: trees.dhf1k_annotation(root, {701: 11}, "frames"),
        "DHF1K", "test", None, {"0701": 11}, 30, False,
    ),
    "DHF1K, annotation and video": (
        lambda root: trees.dhf1k_annotation(root, {601: 5, 602: 3}, "video"),
        "DHF1K", "validation", None, {"601": 5, "602": 3}, 30, False,
    ),
    "Hollywood2": (trees.action_set, "Hollywood2", "train", None, {"clip00002": 4, "clip00010": 3}, 25, False),
    "UCFSports": (trees.action_set, "UCFSports", "test", None, {"clip00001": 5}, 10, False),
    "folder, frame": (
        lambda root: trees.own_folder(root, "frame"), "folder", "test", None, {"street": 4, "walk.v2": 6}, 25, True
    ),
    "folder, time_s": (
        lambda root: trees.own_folder(root, "time_s"), "folder", "test", None, {"street": 4, "walk.v2": 6}, 25, True
    ),
    "folder, maps": (
        lambda root: trees.own_folder(root, "maps"), "folder", "test", None, {"street": 4, "walk.v2": 6}, 25, True
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    make, *rest = LAYOUTS[request.param]
    return make(tmp_path_factory.mktemp("tree")), *rest


def open_all(name, root, split="train", fold=None):
    return {entry["video_id"]: open_recording(entry) for entry in load_saliency_dataset(name, root, split, fold)}


def peak(values: torch.Tensor) -> tuple[int, int]:
    return divmod(int(values.argmax()), values.shape[1])


class TestEveryLayout:
    def test_frames_and_ground_truth_go_together(self, layout):
        root, name, split, fold, videos, fps, _ = layout
        recordings = open_all(name.lower(), root, split, fold)
        assert {video: recording.num_frames for video, recording in recordings.items()} == videos
        for recording in recordings.values():
            assert recording.dataset == name and recording.fps == pytest.approx(fps)
            for i in reversed(range(recording.num_frames)):
                frame, density = recording.frame(i), recording.density(i)
                assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 and frame_index(frame) == i
                assert density.shape == (HEIGHT, WIDTH) and density.dtype == torch.float32 and density.min() >= 0
                assert peak(density) == place(i)
                assert recording.frame_time(i) == pytest.approx(i / fps)
                fixations = recording.fixations(i)
                if (root / "maps" / "601").is_dir():  # maps only
                    assert fixations is None
                else:
                    assert fixations.dtype == torch.bool and fixations.nonzero().tolist() == [list(place(i))]
            for beyond in (-1, recording.num_frames):
                for get in (recording.frame, recording.density, recording.fixations):
                    with pytest.raises(IndexError, match="numbered from 0"):
                        get(beyond)

    def test_a_pipeline_sees_the_same_frames_and_sound(self, layout):
        root, name, split, fold, _, fps, sounds = layout
        for recording in open_all(name, root, split, fold).values():
            media = recording.media()
            source = open_video(media["video"], fps=media["fps"])
            seen = list(source)
            assert source.info.frame_rate == pytest.approx(fps)
            assert len(seen) == recording.num_frames
            for i, frame in enumerate(seen):
                np.testing.assert_array_equal(frame.pixels, recording.frame(i))
                assert frame.time == pytest.approx(recording.frame_time(i))
            sound = recording.open_sound()
            assert (sound is not None) == sounds == (media["audio"] is not False)
            if sound is not None:
                with sound, open_audio(media["audio"] or media["video"]) as other:
                    samples = sound.read(0, SAMPLE_RATE // 10)
                    assert torch.equal(samples, other.read(0, SAMPLE_RATE // 10)) and samples.abs().max() > 0.2

    def test_rows_are_plain_and_alike(self, layout):
        root, name, split, fold, videos, _, _ = layout
        rows = load_saliency_dataset(name, root, split, fold)
        assert isinstance(rows, datasets.Dataset) and rows["video_id"][:] == list(videos)
        streamed = load_saliency_dataset(name.upper(), str(root), split, fold, streaming=True)
        assert isinstance(streamed, datasets.IterableDataset)
        assert list(streamed) == list(rows)
        others = load_saliency_dataset("synthetic", split="validation")
        assert len(datasets.concatenate_datasets([rows, others])) == len(rows) + len(others)


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name in trees.FOLDERS:
        folds = [1] if name == "DIEM" else [1, 2, 3]
        lists = {(split, fold): {f"{split}{fold}": 1} for split in ("train", "test") for fold in folds}
        trees.audio_visual(root, name, lists)
    return root


class TestAudioVisualSets:
    @pytest.mark.parametrize("name", trees.FOLDERS)
    def test_folds(self, name, all_sets):
        for fold in [1, None] if name == "DIEM" else [1, 2, 3]:
            for split in ("train", "test"):
                (row,) = load_saliency_dataset(name, all_sets, split, fold)
                assert row["video_id"] == f"{split}{fold or 1}" and row["dataset"] == name
                assert open_recording(row).density(0).shape == (HEIGHT, WIDTH)
        for fold in [2, 0] if name == "DIEM" else [None, 0, 4]:
            there = "1" if name == "DIEM" else "1, 2, 3"
            with pytest.raises(
                InputError, match=f"{name} has the folds {there}, of which `fold` must name one, got {fold}"
            ):
                load_saliency_dataset(name, all_sets, fold=fold)
        with pytest.raises(InputError, match=f"{name} has no split 'validation'; its splits are train, test"):
            load_saliency_dataset(name, all_sets, "validation", 1)

    def test_maps_are_made_of_fixations_where_they_are_missing(self, tmp_path):
        trees.audio_visual(tmp_path)
        for maps in tmp_path.glob("annotations/AVAD/*/maps"):
            shutil.rmtree(maps)
        (row, _) = load_saliency_dataset("AVAD", tmp_path, fold=1)
        recording = open_recording(row)
        expected = fixation_density(recording.fixations(2), row["sigma"] * WIDTH)
        torch.testing.assert_close(recording.density(2), expected)
        assert row["sigma"] == pytest.approx(1 / 30)
        wider = open_recording(row | {"sigma": 0.2})
        assert wider.density(2).max() < recording.density(2).max() / 5

    def test_a_video_without_sound_file_is_silent_and_that_is_said(self, tmp_path, caplog):
        trees.audio_visual(tmp_path)
        (tmp_path / "video_audio" / "AVAD" / "clip2" / "clip2.wav").unlink()
        recordings = open_all("AVAD", tmp_path, fold=1)
        assert recordings["clip2"].open_sound() is None and recordings["clip2"].media()["audio"] is False
        assert recordings["clip one"].open_sound() is not None
        (warning,) = caplog.messages
        assert "AVAD: 1 of 2 videos have no sound file" in warning and "clip2.wav" in warning

    def test_fixations_of_another_size_than_the_map_move(self, tmp_path):
        trees.audio_visual(tmp_path)
        file = tmp_path / "annotations" / "AVAD" / "clip2" / "fixMap_00001.mat"
        savemat(file, {"eyeMap": scipy.sparse.csc_matrix(trees.looked_at(7, WIDTH * 4, HEIGHT * 4).astype(float))})
        row, column = place(7, WIDTH * 4, HEIGHT * 4)
        fixations = open_all("AVAD", tmp_path, fold=1)["clip2"].fixations(0)
        assert fixations.shape == (HEIGHT, WIDTH) and fixations.nonzero().tolist() == [[row // 4, column // 4]]

    @pytest.mark.parametrize(
        "line", ["../clip2 4 25", "/etc 4 25", "a/b 4 25", ".. 4 25", "a\\b 4 25", "x/../../y 4 25", ". 4 25"]
    )
    def test_no_name_leads_out_of_the_root(self, line, tmp_path):
        root = trees.audio_visual(tmp_path / "root")
        file = root / "fold_lists" / "AVAD_list_train_1_fps.txt"
        file.write_text(f"clip2 4 25.0\n{line}\n")
        with pytest.raises(InputError, match=r"AVAD_list_train_1_fps.txt, line 2: .* is no name of a video"):
            load_saliency_dataset("AVAD", root, fold=1)

    @pytest.mark.parametrize("line", ["clip2 4", "clip2", "clip2 four 25", "clip2 0 25", "clip2 4 0", "clip2 4 nan"])
    def test_bad_lines(self, line, tmp_path):
        trees.audio_visual(tmp_path)
        (tmp_path / "fold_lists" / "AVAD_list_test_1_fps.txt").write_text(f"\nclip_3 5 25.0\n\n{line}\n")
        with pytest.raises(InputError, match=r"line 4: `VIDEO FRAMES FPS` is expected"):
            load_saliency_dataset("AVAD", tmp_path, "test", 1)

    def test_a_gap_in_the_frames_is_no_media(self, tmp_path):
        """A pipeline would give every later frame the map of the next one."""
        trees.audio_visual(tmp_path)
        recording = open_all("AVAD", tmp_path, fold=1)["clip one"]
        frames = tmp_path / "video_frames" / "AVAD" / "clip one"
        (frames / "img_00003.jpg").unlink()
        with pytest.raises(InputError, match=r"img_00003.jpg is expected as image 3 of its folder.*img_00004.jpg"):
            recording.media()


class TestDHF1K:
    def test_numbers_make_the_splits(self, tmp_path):
        trees.dhf1k_frames(tmp_path, dict.fromkeys((1, 2, 10, 600, 601, 700, 701, 1000, 1001), 1))
        ids = {
            split: load_saliency_dataset("dhf1k", tmp_path, split)["video_id"][:]
            for split in ("train", "validation", "test")
        }
        assert ids == {"train": ["1", "2", "10", "600"], "validation": ["601", "700"], "test": ["701", "1000"]}
        with pytest.raises(InputError, match="DHF1K has no folds: leave `fold` out, got 1"):
            load_saliency_dataset("DHF1K", tmp_path, fold=1)

    def test_maps_of_the_test_set_are_not_public(self, tmp_path):
        trees.dhf1k_frames(tmp_path, {601: 1})
        trees.dhf1k_frames(tmp_path, {701: 1}, maps=False)
        with pytest.raises(
            InputError, match=r"maps/701 is missing: the maps of DHF1K's test videos, 701 to 1000, are"
        ):
            load_saliency_dataset("DHF1K", tmp_path, "test")

    def test_a_part_of_it_is_a_part(self, tmp_path, caplog):
        trees.dhf1k_frames(tmp_path, {601: 1})
        load_saliency_dataset("DHF1K", tmp_path, "validation")
        assert caplog.messages == ["DHF1K: 1 of the 100 of the validation split are there"]
        with pytest.raises(InputError, match=r"frames/1 is missing, and none of the videos 1 to 600 is there"):
            load_saliency_dataset("DHF1K", tmp_path, "train")

    def test_frames_behind_the_last_map_do_not_count(self, tmp_path):
        trees.dhf1k_frames(tmp_path, {1: 4})
        (tmp_path / "maps" / "1" / "0004.png").unlink()
        assert open_all("DHF1K", tmp_path)["1"].num_frames == 3


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """OSIE with a few images."""
    return trees.osie(tmp_path_factory.mktemp("osie"), (1001, 1002, 1003, 1600, 1601, 1700))


class TestOSIE:
    def test_splits(self, stills):
        assert load_saliency_dataset("OSIE", stills)["video_id"][:] == ["1001", "1002", "1003", "1600"]
        assert load_saliency_dataset("OSIE", stills, "validation")["video_id"][:] == ["1601", "1700"]
        with pytest.raises(InputError, match="OSIE has no split 'test'; its splits are train, validation"):
            load_saliency_dataset("OSIE", stills, "test")

    def test_fixations_move_with_the_picture(self, stills):
        zooms, moved = [], []
        for number, recording in open_all("OSIE", stills).items():
            x, y = (c * 160 / 800 for c in trees.dot(int(number)))
            assert recording.num_frames == 16 and recording.fps == 25 and recording.open_sound() is None
            media = recording.media()
            assert media["video"].shape == (16, 120, 160, 3) and media["audio"] is False and media["fps"] == 25
            for i in range(16):
                left, top, zoom = recording.camera(i)
                zooms.append(zoom)
                moved.append((left, top))
                assert left >= 0 and top >= 0 and left + 160 / zoom <= 160 + 1e-9 and top + 120 / zoom <= 120 + 1e-9
                frame = recording.frame(i)
                np.testing.assert_array_equal(frame, media["video"][i])
                bright = np.clip(frame.mean(axis=2) - 80, 0, None)
                rows, columns = np.mgrid[:120, :160]
                seen = [(bright * along).sum() / bright.sum() for along in (rows, columns)]
                row, column = peak(recording.density(i))
                expected = (y - top) * zoom - 0.5, (x - left) * zoom - 0.5
                assert seen == pytest.approx(expected, abs=0.35)
                assert (row, column) == pytest.approx(expected, abs=0.51)
                assert recording.fixations(i).nonzero().tolist() == [[row, column]]
        assert min(zooms) >= 1 and 1.15 < max(zooms) <= 1.25
        assert np.ptp(moved, axis=0).min() > 5

    def test_the_gaussian_grows_with_the_zoom(self, stills):
        recording = open_all("OSIE", stills)["1002"]
        for i in (0, 15):
            sigma = 24 * 160 / 800 * recording.camera(i)[2]
            counts = 3.0 * recording.fixations(i)  # three people looked there
            torch.testing.assert_close(recording.density(i), fixation_density(counts, sigma))

    def test_the_camera_is_the_same_every_time_and_another_for_each_image(self, stills):
        one, again = (open_all("OSIE", stills) for _ in range(2))
        assert one["1001"].camera(7) == again["1001"].camera(7) != one["1002"].camera(7)
        np.testing.assert_array_equal(one["1001"].frame(7), again["1001"].frame(7))

    def test_the_camera_stays_in_the_picture(self, stills):
        row = load_saliency_dataset("OSIE", stills)[0]
        for number in range(1001, 1701):
            recording = open_recording(row | {"video_id": str(number)})
            recording.picture = np.zeros((30, 40, 3), np.uint8)
            for i in (0, 7, 15):
                assert recording.frame(i).shape == (30, 40, 3)

    def test_a_camera_that_stands_still(self, stills):
        for number, recording in open_all("OSIE-still", stills, "validation").items():
            assert {recording.camera(i) for i in range(16)} == {(0.0, 0.0, 1.0)}
            np.testing.assert_array_equal(recording.frame(9), recording.picture)
            x, y = (int(c * 160 / 800) for c in trees.dot(int(number)))
            assert recording.fixations(3).nonzero().tolist() == [[y, x]]
            counts = 3.0 * recording.fixations(3)
            torch.testing.assert_close(recording.density(3), fixation_density(counts, 24 * 160 / 800))

    def test_a_sound_that_has_nothing_to_do_with_the_picture(self, stills):
        silent, voiced = (open_all(name, stills)["1001"] for name in ("OSIE", "OSIE-voiced"))
        np.testing.assert_array_equal(silent.frame(5), voiced.frame(5))
        assert torch.equal(silent.density(5), voiced.density(5)) and silent.open_sound() is None
        waveform, rate = voiced.media()["audio"]
        assert len(waveform) / rate == pytest.approx(16 / 25) and waveform.abs().max() > 0.1
        with voiced.open_sound() as sound, open_all("OSIE-voiced", stills)["1002"].open_sound() as other:
            heard = sound.read(0, 8000)
            torch.testing.assert_close(heard, waveform[:8000])
            assert not torch.equal(heard, other.read(0, 8000))

    def test_halves_of_the_observers(self, stills, tmp_path):
        shutil.copytree(stills, tmp_path / "osie")
        rows = [("1001.jpg", observer, 0, 100 + 80 * observer, 300, 100) for observer in range(5)]
        columns = ("image", "observer", "order", "x", "y", "duration_ms")
        trees.save_table(tmp_path / "osie" / "fixations.csv", columns, rows)
        recording = open_all("OSIE-still", tmp_path / "osie")["1001"]
        halves = [half.fixations(0).nonzero()[:, 1].tolist() for half in recording.halves()]
        assert halves == [[20, 52, 84], [36, 68]]
        assert recording.fixations(0).sum() == 5  # as before
        named = [(image, ("Ann", "Bob", "", "Bob", "Cy")[o], *rest) for image, o, *rest in rows]
        trees.save_table(tmp_path / "osie" / "fixations.csv", columns, named)
        halves = [
            half.fixations(0).nonzero()[:, 1].tolist()
            for half in open_all("OSIE-still", tmp_path / "osie")["1001"].halves()
        ]
        assert halves == [[20, 84], [36, 68]]
        trees.save_table(tmp_path / "osie" / "fixations.csv", columns, rows[:1])
        assert open_all("OSIE-still", tmp_path / "osie")["1001"].halves() is None  # one observer only
        trees.save_table(tmp_path / "osie" / "fixations.csv", ("image", "x", "y"), [("1001.jpg", 1, 1)])
        assert open_all("OSIE-still", tmp_path / "osie")["1001"].halves() is None

    def test_what_the_crop_leaves_out_is_dropped(self, stills, tmp_path):
        shutil.copytree(stills, tmp_path / "osie")
        corners = [(x, y) for x in (0.1, 799.9) for y in (0.1, 599.9)]
        outside = [(-5, 10), (900, 10), ("", 10), (10, 600.1)]
        rows = [("1001.jpg", 0, 0, x, y, 100) for x, y in [*corners, *outside, (400, 300)]]
        columns = ("image", "observer", "order", "x", "y", "duration_ms")
        trees.save_table(tmp_path / "osie" / "fixations.csv", columns, rows)
        recording = open_all("OSIE", tmp_path / "osie")["1001"]
        kept = [int(recording.fixations(i).sum()) for i in range(16)]
        assert min(kept) == 1 and max(kept) <= 5
        with pytest.raises(InputError, match=r"fixations.csv has no rows of the image 1002.jpg"):
            open_all("OSIE", tmp_path / "osie")["1002"].fixations(0)

    def test_a_compressed_table(self, stills, tmp_path):
        import gzip

        shutil.copytree(stills, tmp_path / "osie")
        table = tmp_path / "osie" / "fixations.csv"
        (tmp_path / "osie" / "fixations.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
        one, other = (open_all("OSIE", where)["1001"] for where in (stills, tmp_path / "osie"))
        assert torch.equal(one.density(5), other.density(5))


class TestOwnFolder:
    def test_lists_make_splits(self, tmp_path):
        trees.own_folder(tmp_path, "frame", {"a": 1, "b": 1, "c": 1})
        assert load_saliency_dataset("folder", tmp_path, "test")["video_id"][:] == ["a", "b", "c"]
        with pytest.raises(InputError, match=r"train.txt is missing.*all videos are in the split 'test'"):
            load_saliency_dataset("folder", tmp_path, "train")
        (tmp_path / "train.txt").write_text("c\n\na.mp4\n")
        (tmp_path / "validation.txt").write_text("b")
        assert load_saliency_dataset("folder", tmp_path, "train")["video_id"][:] == ["c", "a"]
        assert load_saliency_dataset("folder", tmp_path, "validation")["video_id"][:] == ["b"]
        with pytest.raises(InputError, match=r"test.txt is missing.*there is train, validation"):
            load_saliency_dataset("folder", tmp_path, "test")
        for line, message in (("d", "line 1: .*videos/d.mp4 is missing"), ("../a", "line 1: '../a' is no name")):
            (tmp_path / "train.txt").write_text(line)
            with pytest.raises(InputError, match=message):
                load_saliency_dataset("folder", tmp_path, "train")
        (tmp_path / "train.txt").write_text("\n")
        with pytest.raises(InputError, match=r"train.txt is empty; a list of videos"):
            load_saliency_dataset("folder", tmp_path, "train")

    def test_several_people_and_points_outside(self, tmp_path, caplog):
        trees.own_folder(tmp_path, "frame", {"a": 3})
        good = [("a", 1, 5.2, 6.9, 1), ("a", 2, 5.9, 6.1, 1), ("a.mp4", 3, 20, 0, 1), ("a", 1, 47.9, 31.9, 2)]
        bad = [("a", 1, 48, 3, 1), ("a", 1, -0.1, 3, 1), ("a", 1, 4, 32, 1), ("a", 2, "", 3, 1)]
        bad += [("a", 1, 4, 4, 3), ("a", 1, 4, 4, -1), ("a", 1, 4, 4, "")]
        rows = [*good, *bad, ("else", 1, 4, 4, 0)]
        trees.save_table(tmp_path / "fixations.csv", ("video", "observer", "x", "y", "frame"), rows)
        (row,) = load_saliency_dataset("folder", tmp_path, "test")
        recording = open_recording(row)
        assert recording.fixations(0).sum() == 0 and recording.density(0).max() == 0
        assert recording.fixations(1).nonzero().tolist() == [[0, 20], [6, 5]]
        assert recording.fixations(2).nonzero().tolist() == [[31, 47]]
        counts = torch.zeros(HEIGHT, WIDTH)
        counts[0, 20], counts[6, 5] = 1, 2
        torch.testing.assert_close(recording.density(1), fixation_density(counts, row["sigma"] * WIDTH))
        assert recording.dropped_points == len(bad)
        (warning,) = caplog.messages
        assert "7 of the 11 fixations of a are dropped" in warning and "48x32 pixels" in warning

    def test_times_fall_on_the_frame_that_is_shown(self, tmp_path):
        times = [0.0, 0.1, 0.15, 0.5, 0.52]
        (tmp_path / "videos").mkdir()
        make_video(tmp_path / "videos" / "a.mkv", times=times, size=(WIDTH, HEIGHT), sound=None)
        shown = {0.0: 0, 0.0999: 1, 0.09: 0, 0.1: 1, 0.149: 1, 0.15: 2, 0.49: 2, 0.5: 3, 0.519: 3, 0.53: 4}
        rows = [("a", i + 0.5, 3.5, time) for i, time in enumerate(shown)]
        rows += [("a", 40, 3, -0.1), ("a", 40, 3, 7)]
        trees.save_table(tmp_path / "fixations.csv", ("video", "x", "y", "time_s"), rows)
        recording = open_all("folder", tmp_path, "test")["a"]
        assert [recording.frame_time(i) for i in range(5)] == pytest.approx(times, abs=1e-3)
        assert recording.dropped_points == 2
        for i in range(5):
            columns = recording.fixations(i).nonzero()[:, 1].tolist()
            assert columns == [place for place, frame in enumerate(shown.values()) if frame == i]

    def test_maps_and_a_table_together(self, tmp_path):
        """The maps are the density, whatever their size; the table's points are where they are in the picture."""
        trees.own_folder(tmp_path, "frame", {"a": 2})
        for i in range(2):
            trees.save_image(tmp_path / "maps" / "a" / f"{i}.jpg", trees.truth_map(i, 2 * WIDTH, 2 * HEIGHT))
        recording = open_all("folder", tmp_path, "test")["a"]
        for i in range(2):
            assert recording.density(i).shape == recording.fixations(i).shape == (2 * HEIGHT, 2 * WIDTH)
            row, column = place(i)
            assert recording.fixations(i).nonzero().tolist() == [[2 * row + 1, 2 * column + 1]]

    def test_maps_must_be_one_a_frame(self, tmp_path):
        trees.own_folder(tmp_path, "maps", {"a": 3})
        (tmp_path / "maps" / "a" / "m8.png").unlink()
        with pytest.raises(InputError, match=r"fixations/a must have an image of the same name for each of .*maps/a"):
            load_saliency_dataset("folder", tmp_path, "test")
        (tmp_path / "fixations" / "a" / "m8.png").unlink()
        (row,) = load_saliency_dataset("folder", tmp_path, "test")
        with pytest.raises(InputError, match=r"a.mp4 has 3 frames, but .*maps/a has maps for 2; one map a frame"):
            open_recording(row)

    def test_maps_of_sixteen_bits(self, tmp_path):
        trees.own_folder(tmp_path, "maps", {"a": 1})
        pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 40
        Image.fromarray(pixels).save(tmp_path / "maps" / "a" / "m8.png")
        density = open_all("folder", tmp_path, "test")["a"].density(0)
        np.testing.assert_allclose(density, pixels / 65535, rtol=1e-6)

    def test_a_video_listed_twice(self, tmp_path):
        trees.own_folder(tmp_path, "frame", {"a": 1})
        (tmp_path / "train.txt").write_text("a\na\n")
        with pytest.raises(InputError, match=r"train.txt, line 2: a is listed twice"):
            load_saliency_dataset("folder", tmp_path, "train")

    def test_two_videos_of_one_name(self, tmp_path):
        trees.own_folder(tmp_path, "frame", {"a": 1})
        shutil.copy(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "a.mov")
        with pytest.raises(InputError, match="have one name; a video's name must be its own"):
            load_saliency_dataset("folder", tmp_path, "test")

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("video,x,frame\na,1,1", "has no column y; its columns are video, x, frame"),
            ("video,x,y\na,1,1", "has no column frame or time_s"),
            ("", "cannot be read as a CSV file"),
            ("video,x,y,frame\na,left,1,1", "column 'x' must hold numbers"),
            ("video,x,y,frame\na,1,1,0.5", "a has a `frame` that is no whole number"),
            ("video,x,y,frame\nb,1,1,0", "has no rows of the video a"),
        ],
    )
    def test_bad_tables(self, table, message, tmp_path):
        trees.own_folder(tmp_path, "frame", {"a": 1})
        (tmp_path / "fixations.csv").write_text(table)
        with pytest.raises(InputError, match=rf"fixations\.csv.*{message}"):
            open_all("folder", tmp_path, "test")["a"].fixations(0)


class TestVideoFiles:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("b_frames.mp4", {"codec": "libx264", "keyframe_interval": 10}),
            ("still.mkv", {"times": [0.0, 0.04, 0.2, 0.24, 0.9, 1.0, 1.5, 1.54, 1.6, 1.7]}),
            ("late.mkv", {"times": [0.2 + i / 25 for i in range(10)], "sound_start": 0.0}),
            ("stream.ts", {"codec": "mpeg2video", "num_frames": 10}),
            ("xvid.avi", {"codec": "mpeg4", "num_frames": 10, "audio_codec": "mp3"}),
            ("vp9.webm", {"codec": "libvpx-vp9", "num_frames": 10, "audio_codec": "libopus"}),
        ],
    )
    def test_frames_in_any_order_are_those_of_the_stream(self, name, settings, tmp_path):
        (tmp_path / "videos").mkdir()
        path = make_video(tmp_path / "videos" / name, **settings)
        stream = list(open_video(path))
        np.testing.assert_allclose(frame_times(path), [frame.time for frame in stream], atol=1e-6)
        trees.save_table(tmp_path / "fixations.csv", ("video", "x", "y", "frame"), [(path.stem, 1, 1, 0)])
        (recording,) = open_all("folder", tmp_path, "test").values()
        assert recording.num_frames == len(stream)
        order = np.random.default_rng(0).permutation(len(stream)).tolist()
        for i in [*order, *range(len(stream)), 0, 0]:
            np.testing.assert_array_equal(recording.frame(i), stream[i].pixels)

    def test_one_after_another_is_decoded_once(self, tmp_path, monkeypatch):
        from diffsal_diffusers.data import recordings

        trees.own_folder(tmp_path, "frame", {"a": 60})
        recording = open_all("folder", tmp_path, "test")["a"]
        opened = []
        monkeypatch.setattr(recordings, "open_video", lambda *args, **kw: opened.append(1) or open_video(*args, **kw))
        for i in [0, 1, 2, 5, 30]:
            assert frame_index(recording.frame(i)) == i
        assert len(opened) == 1
        assert frame_index(recording.frame(3)) == 3 and len(opened) == 2

    def test_damage_is_named_and_what_lies_around_is_read(self, tmp_path):
        trees.own_folder(tmp_path, "frame", {})
        path = make_video(tmp_path / "videos" / "a.mp4", 60, keyframe_interval=1, sound=None)
        trees.save_table(tmp_path / "fixations.csv", ("video", "x", "y", "frame"), [("a", 1, 1, 0)])
        recording = open_all("folder", tmp_path, "test")["a"]
        with av.open(str(path)) as container:
            packet = list(container.demux(video=0))[30]
            begin, length = packet.pos, packet.size
        content = path.read_bytes()
        path.write_bytes(content[:begin] + bytes(length) + content[begin + length :])
        readable = []
        for i in range(60):
            try:
                readable.append(frame_index(recording.frame(i)) == i)
            except InputError as error:
                assert "a.mp4" in str(error)
                readable.append(None)
        assert readable.count(False) == 0 and readable[0] and readable[-1] and None in readable


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("make", "name", "split", "path"),
        [
            (trees.audio_visual, "AVAD", "train", "fold_lists"),
            (trees.audio_visual, "AVAD", "test", "fold_lists/AVAD_list_test_1_fps.txt"),
            (trees.audio_visual, "AVAD", "train", "video_frames/AVAD"),
            (trees.audio_visual, "AVAD", "train", "video_audio/AVAD"),
            (trees.audio_visual, "AVAD", "train", "annotations/AVAD"),
            (trees.audio_visual, "AVAD", "train", "video_frames/AVAD/clip2"),
            (trees.audio_visual, "AVAD", "train", "video_frames/AVAD/clip2/img_00001.jpg"),
            (trees.audio_visual, "AVAD", "train", "annotations/AVAD/clip2"),
            (lambda root: trees.dhf1k_frames(root, {1: 1, 2: 1}), "DHF1K", "train", "frames"),
            (lambda root: trees.dhf1k_frames(root, {1: 1, 2: 1}), "DHF1K", "train", "maps/2"),
            (lambda root: trees.dhf1k_annotation(root, {1: 1}, "images"), "DHF1K", "train", "annotation/0001/maps"),
            (trees.action_set, "UCFSports", "train", "training"),
            (trees.action_set, "UCFSports", "test", "testing/clip00001/images"),
            (trees.action_set, "Hollywood2", "test", "testing/clip00001/maps"),
            (trees.osie, "OSIE", "train", "fixations.csv"),
            (trees.osie, "OSIE", "train", "images"),
            (lambda root: trees.own_folder(root, "frame"), "folder", "test", "videos"),
            (lambda root: trees.own_folder(root, "frame"), "folder", "test", "fixations.csv"),
            (lambda root: trees.own_folder(root, "maps"), "folder", "test", "maps/street"),
        ],
    )  # fmt: skip
    def test_the_path_and_the_layout_are_told(self, make, name, split, path, tmp_path):
        make(tmp_path)
        fold = 1 if name == "AVAD" else None
        load_saliency_dataset(name, tmp_path, split, fold)
        (shutil.rmtree if (tmp_path / path).is_dir() else lambda file: file.unlink())(tmp_path / path)
        with pytest.raises(InputError) as caught:
            load_saliency_dataset(name, tmp_path, split, fold)
        message = str(caught.value)
        assert "\n" not in message and f"{name} is expected as {SALIENCY_DATASETS[name].layout}" in message
        told = path.replace("fixations.csv", "maps") if name == "folder" else path
        assert message.startswith(str(tmp_path / told)) and "is missing" in message

    @pytest.mark.parametrize("name", [name for name, known in SALIENCY_DATASETS.items() if known.needs_root])
    def test_roots(self, name, tmp_path):
        known = SALIENCY_DATASETS[name]
        arguments = {"split": known.splits[-1], "fold": known.folds[0]}
        with pytest.raises(InputError, match="`root`, the folder with the data set, is needed"):
            load_saliency_dataset(name, **arguments)
        with pytest.raises(InputError, match=f"there is no such folder; {name} is expected there as"):
            load_saliency_dataset(name, tmp_path / "nowhere", **arguments)
        with pytest.raises(InputError, match=f"is empty; {name} is expected there as"):
            load_saliency_dataset(name, tmp_path, **arguments)

    def test_names(self):
        assert list_saliency_datasets()[:6] == ["AVAD", "Coutrot1", "Coutrot2", "DIEM", "ETMD", "SumMe"]
        assert {"DHF1K", "Hollywood2", "UCFSports", "OSIE", "folder"} < set(list_saliency_datasets())
        with pytest.raises(
            InputError, match=r"no data set 'Coutrot_db1', did you mean Coutrot1.*; the data sets are AVAD"
        ):
            load_saliency_dataset("Coutrot_db1", ".")


def test_a_data_set_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "SALIENCY_DATASETS", dict(SALIENCY_DATASETS))

    @register_dataset(
        "mine",
        open_entry=lambda entry: SyntheticScene(entry["number"], num_frames=entry["num_frames"]),
        layout="nothing",
        splits=("test",),
        needs_root=False,
    )
    def list_mine(root, split, fold):
        return [{"video_id": f"{number}", "num_frames": 4, "number": number} for number in range(3)]

    assert "mine" in list_saliency_datasets()
    rows = load_saliency_dataset("Mine", split="test")
    recording = open_recording(rows[2])
    assert recording.seed == 2 and recording.num_frames == rows[2]["num_frames"] == 4


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("file", "get"),
        [
            ("video_frames/AVAD/clip2/img_00002.jpg", lambda recording: recording.frame(1)),
            ("annotations/AVAD/clip2/maps/eyeMap_00002.jpg", lambda recording: recording.density(1)),
            ("annotations/AVAD/clip2/fixMap_00002.mat", lambda recording: recording.fixations(1)),
            ("video_audio/AVAD/clip2/clip2.wav", lambda recording: recording.open_sound().read(0, 100)),
        ],
    )
    @pytest.mark.parametrize("how", ["missing", "empty", "cut", "noise"])
    def test_the_file_is_named(self, file, get, how, tmp_path):
        trees.audio_visual(tmp_path)
        recording, path = open_all("AVAD", tmp_path, fold=1)["clip2"], tmp_path / file
        get(recording)
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            noise = np.random.default_rng(0).bytes(300)
            path.write_bytes({"empty": b"", "cut": content[: len(content) // 3], "noise": noise}[how])
        if how == "cut" and path.suffix == ".wav":
            return  # a WAV that ends early is a short one: what is missing is silence
        with pytest.raises(InputError) as caught:
            get(recording)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    def test_matlab_files(self, tmp_path):
        trees.audio_visual(tmp_path)
        recording = open_all("AVAD", tmp_path, fold=1)["clip2"]
        path = tmp_path / "annotations" / "AVAD" / "clip2" / "fixMap_00001.mat"
        savemat(path, {"other": np.zeros((2, 2))})
        with pytest.raises(InputError, match=r"fixMap_00001.mat has no variable `eyeMap`"):
            recording.fixations(0)
        savemat(path, {"eyeMap": "text"})
        with pytest.raises(InputError, match=r"`eyeMap` has shape \(1,\) and type .*; a map is expected"):
            recording.fixations(0)
        header = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM"
        path.write_bytes(header + bytes(384))
        with pytest.raises(InputError, match=r"is a MATLAB file of version 7.3; save it as version 5 to 7"):
            recording.fixations(0)

    def test_images_of_several_names(self, tmp_path):
        trees.action_set(tmp_path)
        trees.save_image(
            tmp_path / "training" / "clip00002" / "images" / "other_00001.png", np.zeros((4, 4, 3), np.uint8)
        )
        with pytest.raises(InputError, match=r"images holds .*; its images must have one name but for their number"):
            load_saliency_dataset("UCFSports", tmp_path)


def test_a_thousand_videos_are_only_listed(tmp_path, monkeypatch):
    for number in range(1, 601):
        for path in (tmp_path / "frames" / f"{number}" / "1.png", tmp_path / "maps" / f"{number}" / "0001.png"):
            path.parent.mkdir(parents=True)
            path.touch()
    lines = []
    for number in range(1000):
        frames, annotations = (tmp_path / part / "AVAD" / f"v{number}" for part in ("video_frames", "annotations"))
        (annotations / "maps").mkdir(parents=True)
        frames.mkdir(parents=True)
        (frames / "img_00001.jpg").touch()
        lines.append(f"v{number} 100000 25.0")
    (tmp_path / "video_audio" / "AVAD").mkdir(parents=True)
    (tmp_path / "fold_lists").mkdir()
    (tmp_path / "fold_lists" / "AVAD_list_train_1_fps.txt").write_text("\n".join(lines))

    real = builtins.open

    def no_media(file, *args, **kwargs):
        assert not str(file).startswith(str(tmp_path)), f"{file} was opened"
        return real(file, *args, **kwargs)

    def nothing(*_, **__):
        raise AssertionError("a media file was opened")

    monkeypatch.setattr(builtins, "open", no_media)
    monkeypatch.setattr(Image, "open", nothing)
    monkeypatch.setattr("diffsal_diffusers.media.container.av.open", nothing)
    monkeypatch.setattr("scipy.io.loadmat", nothing)
    assert len(load_saliency_dataset("DHF1K", tmp_path)) == 600
    rows = load_saliency_dataset("AVAD", tmp_path, fold=1)
    assert len(rows) == 1000
    for row in rows:
        assert open_recording(row).num_frames == 100000


def test_importing_the_package_imports_no_heavy_library():
    import diffsal_diffusers.data as package

    for module in ("clips", "density", "files", "layouts", "recordings", "registry"):
        source = inspect.getsource(__import__(f"{package.__name__}.{module}", fromlist=["_"]))
        for library in ("datasets", "pandas", "scipy"):
            assert f"\nimport {library}" not in source and f"\nfrom {library}" not in source
