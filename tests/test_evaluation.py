"""Scoring by the field's protocol: the numbers, going on after an interruption, several processes, wrong input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dataset_trees as trees
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from media_files import make_video
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from stand_ins import tiny_pipeline

from diffsal_diffusers import InputError
from diffsal_diffusers.cli import main
from diffsal_diffusers.data import SyntheticScene, load_saliency_dataset, open_recording
from diffsal_diffusers.evaluation import (
    Evaluation,
    FolderPredictor,
    MeanMap,
    PipelinePredictor,
    centre_prior,
    dataset_means,
    prepare_prediction,
)
from diffsal_diffusers.evaluation import predictors as predictors_module
from diffsal_diffusers.evaluation.predictors import centre, spectral_residual, uniform
from diffsal_diffusers.evaluation.protocol import PredictionError
from diffsal_diffusers.metrics import METRICS, auc_shuffled, cc, nss, sim

METRIC_NAMES = ["cc", "nss", "auc_judd", "sim"]


def save_grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(255 * values / max(values.max(), 1e-9)).astype(np.uint8)).save(path)


def blob(index: int, size=(48, 64)) -> np.ndarray:
    """A map whose peak moves with the frame's number."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.exp(-((x - 8 - 5 * index) ** 2 + (y - 24) ** 2) / 60)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two videos of one's own, five and three frames, with maps and fixations."""
    root = tmp_path_factory.mktemp("own")
    (root / "videos").mkdir()
    for name, frames in (("one", 5), ("two", 3)):
        make_video(root / "videos" / f"{name}.mp4", frames)
        for i in range(frames):
            save_grey(root / "maps" / name / f"{i + 1:04d}.png", blob(i))
            save_grey(root / "fixations" / name / f"{i + 1:04d}.png", (blob(i) > 0.9).astype(float))
    return root


@pytest.fixture
def predictions(tmp_path):
    """Maps made elsewhere for these videos: the truth of one, the wrong frames of the other."""
    for name, frames, shift in (("one", 5, 0), ("two", 3, 4)):
        for i in range(frames):
            save_grey(tmp_path / "maps" / name / f"{i + 1:04d}.png", blob(i + shift))
    return tmp_path / "maps"


def audio_visual_tree(root: Path) -> Path:
    """AVAD with three videos of three frames; video b is tested in two folds."""
    lists = {"test_1": "ab", "test_2": "b", "test_3": "c", "train_1": "c", "train_2": "a", "train_3": "ab"}
    (root / "fold_lists").mkdir(parents=True)
    for name, videos in lists.items():
        text = "".join(f"{video} 3 25.0\n" for video in videos)
        (root / "fold_lists" / f"AVAD_list_{name}_fps.txt").write_text(text)
    (root / "video_audio" / "AVAD").mkdir(parents=True)
    for video in "abc":
        for i in range(1, 4):
            save_grey(root / "video_frames" / "AVAD" / video / f"img_{i:05d}.jpg", blob(i - 1))
            save_grey(root / "annotations" / "AVAD" / video / "maps" / f"eyeMap_{i:05d}.jpg", blob(i - 1))
            savemat(
                root / "annotations" / "AVAD" / video / f"fixMap_{i:05d}.mat",
                {"eyeMap": (blob(i - 1) > 0.9).astype(np.uint8)},
            )
    return root


def evaluate(capsys, *args) -> tuple[int, str, str]:
    """`diffsal evaluate`: its exit code, and what it wrote to the two streams."""
    capsys.readouterr()
    try:
        code = main(["evaluate", *map(str, args)])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestProtocol:
    def test_a_prediction_is_scaled_smoothed_and_resized(self):
        prediction = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
        expected = gaussian_filter((prediction / prediction.max()).double().numpy(), 2, mode="reflect")
        same = prepare_prediction(prediction, (20, 30))
        np.testing.assert_allclose(same, expected, atol=1e-6)
        larger = prepare_prediction(prediction, (40, 60))
        resized = F.interpolate(torch.from_numpy(expected)[None, None], size=(40, 60), mode="bilinear")[0, 0]
        np.testing.assert_allclose(larger, resized, atol=1e-6)

    def test_a_constant_prediction_stays_constant(self):
        for value in (0.0, 0.3):
            assert torch.equal(prepare_prediction(torch.full((9, 16), value), (20, 30)), torch.ones(20, 30))

    def test_scores_are_means_over_frames_then_videos_then_folds(self, root, predictions, tmp_path):
        entries = list(load_saliency_dataset("folder", root, split="test"))
        results = Evaluation(tmp_path / "out", METRIC_NAMES, {}).run(entries, {"mine": FolderPredictor(predictions)})
        by_video = {}
        for entry, result in zip(entries, results, strict=True):
            recording = open_recording(entry)
            values = {name: [] for name in METRIC_NAMES}
            for i in range(recording.num_frames):
                with Image.open(predictions / entry["video_id"] / f"{i + 1:04d}.png") as image:
                    map_ = torch.from_numpy(np.asarray(image) / 255.0)
                prepared = torch.from_numpy(gaussian_filter((map_ / map_.max()).numpy(), 2, mode="reflect"))[None]
                for name in METRIC_NAMES:
                    truth = recording.density(i) if name in ("cc", "sim") else recording.fixations(i)
                    values[name].append(METRICS[name].function(prepared, truth[None]).item())
            by_video[entry["video_id"]] = {name: np.mean(v) for name, v in values.items()}
            for name in METRIC_NAMES:
                # AUC counts ties, which rounding makes and unmakes on the maps' flat parts.
                tolerance = 1e-3 if name == "auc_judd" else 1e-5
                assert result["scores"]["mine"][name] == pytest.approx(np.mean(values[name]), abs=tolerance)
        assert by_video["one"]["cc"] > 0.9 > by_video["two"]["cc"]  # the truth, and not
        # Folds of unequal sizes: their mean is not that of all videos.
        means = dataset_means({"1": [results[0], results[1], results[1]], "2": results[:1]}, METRIC_NAMES)["mine"]
        for name in METRIC_NAMES:
            one, two = (by_video[video][name] for video in ("one", "two"))
            assert means[name] == pytest.approx(((one + 2 * two) / 3 + one) / 2, abs=1e-3)

    def test_frames_that_nobody_looked_at_do_not_count(self, root, predictions, tmp_path):
        shutil.copytree(root, tmp_path / "own")
        save_grey(tmp_path / "own" / "fixations" / "two" / "0002.png", np.zeros((48, 64)))
        entries = [
            e for e in load_saliency_dataset("folder", tmp_path / "own", split="test") if e["video_id"] == "two"
        ]
        predict = {"mine": FolderPredictor(predictions)}
        (whole,) = Evaluation(tmp_path / "whole", METRIC_NAMES, {}).run(entries, predict)
        (odd,) = Evaluation(tmp_path / "odd", METRIC_NAMES, {}, frame_step=2).run(entries, predict)
        assert whole["frames"] == odd["frames"] == 2 and whole["scores"] == odd["scores"] and not whole["skipped"]

    def test_negatives_of_shuffled_auc_are_the_other_frames_fixations(self, root, predictions, tmp_path):
        entry = next(iter(load_saliency_dataset("folder", root, split="test")))
        predict = {"mine": FolderPredictor(predictions)}
        (result,) = Evaluation(tmp_path / "out", ["auc_shuffled"], {}, seed=7).run([entry], predict)
        recording = open_recording(entry)
        looks = torch.stack([recording.fixations(i) for i in range(5)])
        values = []
        for i in range(5):
            others = torch.stack([looks[j] for j in range(5) if j != i]).any(dim=0)
            prepared = prepare_prediction(recording.density(i), (48, 64))[None]
            values.append(auc_shuffled(prepared, looks[i][None], others[None]).item())
        assert result["scores"]["mine"]["auc_shuffled"] == pytest.approx(np.mean(values), abs=0.02)

    def test_broken_predictions_are_no_skipped_frames(self, root, tmp_path):
        def broken(recording, frames):
            for _ in frames:
                yield torch.full((4, 4), torch.nan)

        entries = list(load_saliency_dataset("folder", root, split="test"))
        with pytest.raises(PredictionError, match="one: mine gives NaN or infinity for frame 0"):
            Evaluation(tmp_path, METRIC_NAMES, {}).run(entries, {"mine": broken})


class TestPredictors:
    def test_a_pipelines_maps(self):
        scene = SyntheticScene(1, num_frames=9, size=(64, 96))
        pipe = tiny_pipeline()
        maps = list(PipelinePredictor(pipe, seed=3)(scene, range(0, 9, 4)))
        media = scene.media()
        whole = pipe(**media, frame_stride=4, generator=torch.Generator().manual_seed(3)).saliency
        assert len(maps) == 3
        for saliency, index in zip(maps, (0, 4, 8), strict=True):
            np.testing.assert_allclose(saliency, whole[index], atol=1e-5)

    def test_frames_off_the_stride_are_interpolated_as_the_pipeline_does(self):
        scene = SyntheticScene(2, num_frames=9, size=(64, 96))
        pipe = tiny_pipeline(frame_stride=4)
        whole = pipe(**scene.media(), generator=torch.Generator().manual_seed(0)).saliency
        for step in (1, 3, 4, 8):
            frames = range(0, 9, step)
            for saliency, index in zip(PipelinePredictor(pipe)(scene, frames), frames, strict=True):
                np.testing.assert_allclose(saliency, whole[index], atol=1e-5)

    def test_modalities(self):
        scene = SyntheticScene(1, num_frames=8, size=(64, 96))
        pipe, frames = tiny_pipeline(), range(0, 8, 4)
        maps = {m: torch.stack(list(PipelinePredictor(pipe, m)(scene, frames))) for m in ("av", "v", "a")}
        assert maps["a"].shape == maps["av"].shape == (2, 64, 96)
        for one, other in (("av", "v"), ("av", "a"), ("v", "a")):
            assert not torch.allclose(maps[one], maps[other], atol=1e-3)
        silent = SyntheticScene(1, num_frames=8, size=(64, 96), silent=True)
        torch.testing.assert_close(torch.stack(list(PipelinePredictor(pipe)(silent, frames))), maps["v"])
        with pytest.raises(InputError, match="no sound to predict from"):
            next(PipelinePredictor(pipe, "a")(silent, frames))
        with pytest.raises(InputError, match="`modality` must be one of av, v, a, got 'x'"):
            PipelinePredictor(pipe, "x")

    def test_a_model_that_does_not_listen(self):
        """On a video with sound of its own it predicts from the picture, and sound alone is refused at once."""
        scene = SyntheticScene(0, num_frames=3, size=(48, 80))
        deaf = tiny_pipeline(audio=None)
        predict = PipelinePredictor(deaf)
        assert predict.modality == "v" and len(list(predict(scene, range(3)))) == 3
        with pytest.raises(InputError, match="the modality 'a' is more than this model takes, which is 'v'"):
            PipelinePredictor(deaf, "a")

    def test_baselines(self, root):
        scene = SyntheticScene(0, num_frames=4, size=(96, 160))
        frames = range(0, 4, 2)
        for predict in (centre, uniform, spectral_residual):
            maps = list(predict(scene, frames))
            assert len(maps) == 2 and all((m >= 0).all() for m in maps)
        truth = scene.density(0)[None]
        chance = prepare_prediction(next(uniform(scene, frames)), truth.shape[1:])[None]
        assert cc(chance, truth).item() == nss(chance, scene.fixations(0)[None]).item() == 0
        prior = centre_prior((96, 160))
        assert prior.argmax() in (47 * 160 + 79, 47 * 160 + 80, 48 * 160 + 79, 48 * 160 + 80)

    def test_spectral_residual_finds_the_odd_one_out(self):
        rng = np.random.default_rng(0)
        picture = rng.integers(100, 140, (96, 128, 1), np.uint8).repeat(3, axis=2)
        picture[40:52, 80:92] = 255

        class OddOne(SyntheticScene):
            def frame(self, index):
                return picture

        saliency = next(spectral_residual(OddOne(0), range(1)))
        y, x = divmod(int(saliency.argmax()), saliency.shape[1])
        assert abs(x / saliency.shape[1] - 86 / 128) < 0.08 and abs(y / saliency.shape[0] - 46 / 96) < 0.08

    def test_the_mean_map_is_the_mean_of_training_maps(self, monkeypatch):
        scenes = {seed: SyntheticScene(seed, num_frames=4, size=(96, 160)) for seed in range(3)}

        def open_some(entry):
            if entry["seed"] == 7:
                raise InputError("a broken video")
            return scenes[entry["seed"]]

        monkeypatch.setattr(predictors_module, "open_recording", open_some)
        predict = MeanMap([{"seed": 0}, {"seed": 7}, {"seed": 1}])
        densities = [scenes[seed].density(i) for seed in (0, 1) for i in range(4)]
        expected = sum(F.adaptive_avg_pool2d((d / d.sum())[None], (96, 160))[0] for d in densities)
        torch.testing.assert_close(next(predict(scenes[2], range(1))), expected)


class TestRunning:
    def test_what_is_written(self, root, predictions, tmp_path, capsys):
        code, out, err = evaluate(
            capsys, "--dataset", "folder", "--root", root, "--predictions", predictions, "--output", tmp_path / "out"
        )
        assert code == 0
        table = (tmp_path / "out" / "table.md").read_text()
        assert table in out + "\n" and "| maps |" in table and "| uniform | 0.000 | 0.000 | 0.500 |" in table
        assert "no row for the mean training map" in err
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert scores["videos"] == {"all": 2} and scores["settings"]["limit"] is None
        with open(tmp_path / "out" / "per_video.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["video"] for row in rows} == {"one", "two"}
        mine = [float(row["cc"]) for row in rows if row["predictor"] == "predictions"]
        assert np.mean(mine) == pytest.approx(scores["scores"]["predictions"]["cc"])
        for name in ("examples.png", "worst.png"):
            with Image.open(tmp_path / "out" / name) as page:
                assert page.width == 5 * 240 + 240  # frame, truth, ours, three baselines
                assert page.height == 2 * (180 + 22)
        assert not list((tmp_path / "out").rglob(".*"))

    def test_people_beside_the_baselines(self, tmp_path, capsys):
        """Two observers look at one place, two at another: halves of one each agree, others do not."""
        root, columns = trees.osie(tmp_path / "osie", (1601, 1602)), ("image", "observer", "x", "y")
        agreeing = [("1601.jpg", observer, (200, 600)[observer // 2], 300) for observer in range(4)]
        disagreeing = [("1602.jpg", observer, (200, 600)[observer % 2], 300) for observer in range(4)]
        trees.save_table(root / "fixations.csv", columns, agreeing + disagreeing)
        args = ["--dataset", "osie-still", "--root", root, "--predictions", tmp_path / "maps", "--frame-step", 8]
        for name in ("1601", "1602"):
            for i in (0, 8):
                file = tmp_path / "maps" / name / f"{i:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                grey = np.zeros((60, 80), np.uint8)
                grey[30, 20 if name == "1601" else 40] = 255  # one of the two places, and neither
                Image.fromarray(grey).save(file)
        more = ["--baselines", "humans", "--metrics", "cc,nss", "--output", tmp_path / "out", "--allow-missing"]
        code, out, _ = evaluate(capsys, *args, *more)
        assert code == 0 and "| half of the people for the other half |" in out
        with open(tmp_path / "out" / "per_video.csv", newline="") as file:
            people = {row["video"]: row for row in csv.DictReader(file) if row["predictor"] == "humans"}
        assert float(people["1601"]["cc"]) > 0.99 and float(people["1602"]["cc"]) < 0
        assert float(people["1601"]["nss"]) > 3 and float(people["1602"]["nss"]) < 0

        result = json.loads((tmp_path / "out" / "videos" / "all" / "1602.json").read_text())
        assert result["scores"]["predictions"]["cc"] < 0.1
        with Image.open(tmp_path / "out" / "worst.png") as page:
            picture = np.asarray(page.convert("L"))  # frame, truth, ours; the worse one above
            ours = picture[22 : 22 + 180, 480:]
            assert ours.shape[1] == 240 and abs(int(ours.sum(axis=0).argmax()) - 40 * 3) <= 3

    def test_a_model_beside_baselines_on_synthetic_scenes(self, tmp_path, capsys):
        tiny_pipeline().save_pretrained(tmp_path / "tiny")
        args = ["--model", tmp_path / "tiny", "--dataset", "synthetic", "--limit", 2, "--frame-step", 25, "--steps", 1]
        args += ["--metrics", ",".join(METRICS), "--baselines", "centre", "--output", tmp_path / "out"]
        code, out, _ = evaluate(capsys, *args)
        assert code == 0 and "| tiny (av) |" in out and "| centre Gaussian |" in out
        assert out.splitlines()[0] == "| method | CC ↑ | NSS ↑ | AUC-J ↑ | SIM ↑ | KL ↓ | s-AUC ↑ | IG ↑ |"

    def test_it_goes_on_where_it_stopped(self, root, predictions, tmp_path):
        entries = list(load_saliency_dataset("folder", root, split="test"))
        asked = []

        def predict(recording, frames):
            asked.append(recording.video_id)
            if recording.video_id == "two" and asked.count("two") == 1:
                raise KeyboardInterrupt
            yield from FolderPredictor(predictions)(recording, frames)

        with pytest.raises(KeyboardInterrupt):
            Evaluation(tmp_path / "out", METRIC_NAMES, {"a": 1}).run(entries, {"mine": predict})
        results = Evaluation(tmp_path / "out", METRIC_NAMES, {"a": 1}).run(entries, {"mine": predict})
        assert asked == ["one", "two", "two"]
        assert results == Evaluation(tmp_path / "other", METRIC_NAMES, {}).run(entries, {"mine": predict})
        with pytest.raises(
            InputError, match="holds an evaluation with a = 1, and this one has 2; give another --output"
        ):
            Evaluation(tmp_path / "out", METRIC_NAMES, {"a": 2})

    def test_new_maps_or_a_new_model_are_no_old_results(self, root, predictions, tmp_path, capsys):
        args = ["--dataset", "folder", "--root", root, "--baselines", "", "--output", tmp_path / "out"]
        assert evaluate(capsys, *args, "--predictions", predictions)[0] == 0
        save_grey(predictions / "one" / "0002.png", blob(3))
        code, _, err = evaluate(capsys, *args, "--predictions", predictions)
        assert code == 1 and "holds an evaluation with state =" in err

    def test_folds_and_limits(self, tmp_path, capsys, monkeypatch):
        """A video of two folds counts in both, with each fold's own mean map."""
        tree = audio_visual_tree(tmp_path / "data")
        args = ["--dataset", "AVAD", "--root", tree, "--predictions", tmp_path / "maps"]
        for video in ("a", "b", "c"):
            for i in range(3):
                save_grey(tmp_path / "maps" / video / f"{i + 1:05d}.png", blob(i))
        code, out, _ = evaluate(capsys, *args, "--output", tmp_path / "all")
        assert code == 0 and "DiffSal (published)" in out and "mean training map" in out
        with open(tmp_path / "all" / "per_video.csv", newline="") as file:
            rows = [(row["fold"], row["video"]) for row in csv.DictReader(file) if row["predictor"] == "mean"]
        assert rows == [("1", "a"), ("1", "b"), ("2", "b"), ("3", "c")]
        code, out, err = evaluate(capsys, *args, "--fold", "1", "--limit", 1, "--output", tmp_path / "one")
        assert code == 0 and "published" not in out and "not the whole test split" in err
        assert json.loads((tmp_path / "one" / "scores.json").read_text())["settings"]["folds"] == ["1"]

    def test_two_processes_are_one(self, root, predictions, tmp_path, capsys):
        args = ["evaluate", "--dataset", "folder", "--root", root, "--predictions", predictions]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        launch += ["-m", "diffsal_diffusers.cli", *map(str, args), "--output", tmp_path / "two"]
        done = subprocess.run(launch, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("no row for the mean training map") == 2  # two processes
        code, out, _ = evaluate(capsys, *args[1:], "--output", tmp_path / "one")
        assert code == 0 and out == done.stdout
        for name in ("per_video.csv", "table.md", "examples.png", "worst.png"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name

    def test_broken_files_are_named_and_skipped_or_end_it(self, root, predictions, tmp_path, capsys):
        shutil.copytree(root, tmp_path / "broken")
        (tmp_path / "broken" / "maps" / "one" / "0002.png").write_bytes(b"no image")
        args = ["--dataset", "folder", "--root", tmp_path / "broken", "--predictions", predictions]
        code, _, err = evaluate(capsys, *args, "--output", tmp_path / "out")
        assert code == 0 and "skipped: 1" in err and "0002.png" in err
        code, _, err = evaluate(capsys, *args, "--strict", "--output", tmp_path / "strict")
        assert code == 1 and "0002.png" in err and "Traceback" not in err
        save_grey(tmp_path / "broken" / "maps" / "one" / "0002.png", blob(1))
        code, _, err = evaluate(capsys, *args, "--output", tmp_path / "out")  # tried again when it is repaired
        assert code == 0 and "skipped" not in err

    @pytest.mark.parametrize("broken", ["videos/one.mp4", "maps/one/0001.png", "fixations/one/0001.png"])
    def test_one_broken_file_costs_no_more_than_it_must(self, broken, root, predictions, tmp_path, capsys):
        shutil.copytree(root, tmp_path / "broken")
        (tmp_path / "broken" / broken).write_bytes(b"broken")
        args = ["--dataset", "folder", "--root", tmp_path / "broken", "--predictions", predictions, "--allow-missing"]
        args += ["--metrics", "cc,auc_shuffled", "--output", tmp_path / "out"]
        code, _, err = evaluate(capsys, *args)
        with open(tmp_path / "out" / "per_video.csv", newline="") as file:
            frames = {row["video"]: int(row["frames"]) for row in csv.DictReader(file)}
        assert code == 0 and "skipped: 1" in err
        assert frames == ({"two": 3} if broken.startswith("videos") else {"one": 4, "two": 3})


class TestWrongInput:
    @pytest.mark.parametrize("kind", ["video", "frame", "extra", "first", "more"])
    def test_predictions_and_ground_truth_that_do_not_match(self, kind, root, predictions, tmp_path, capsys):
        if kind == "video":
            shutil.rmtree(predictions / "two")
            expected = "two: no prediction"
        elif kind == "frame":
            (predictions / "one" / "0003.png").unlink()
            expected = "one: 1 of 5 frames have no prediction, first 2"
        elif kind == "first":
            for i in range(1, 6):  # from 0 on, and the first is missing: they could be counted from 1
                (predictions / "one" / f"{i:04d}.png").rename(predictions / "one" / f"{i - 1:04d}.png")
            (predictions / "one" / "0000.png").unlink()
            expected = "images are numbered 1 to 4, but the video has 5 frames"
        elif kind == "more":
            save_grey(predictions / "one" / "0006.png", blob(5))
            expected = "images are numbered 1 to 6, but the video has 5 frames"
        else:
            shutil.copytree(predictions / "two", predictions / "three")
            expected = "three: a prediction, but no ground truth"
        args = ["--dataset", "folder", "--root", root, "--predictions", predictions, "--output", tmp_path / "out"]
        code, _, err = evaluate(capsys, *args)
        assert code == 1 and expected in err and "1 mismatches" in err
        if kind in ("video", "frame", "extra"):
            code, out, _ = evaluate(capsys, *args, "--allow-missing")
            assert code == 0 and "| maps |" in out

    def test_maps_of_different_sizes(self, root, predictions, tmp_path, capsys):
        save_grey(predictions / "one" / "0002.png", blob(1, (24, 32)))
        args = ["--dataset", "folder", "--root", root, "--predictions", predictions, "--output", tmp_path / "out"]
        code, _, err = evaluate(capsys, *args)
        assert code == 1 and "24x32 pixels, but earlier maps of the video have 48x64" in err
        (predictions / "one" / "0002.png").write_bytes(b"no image")
        code, _, err = evaluate(capsys, *args, "--allow-missing", "--output", tmp_path / "other")
        assert code == 1 and "0002.png" in err and "Traceback" not in err

    def test_grey_videos_are_predictions_too(self, root, tmp_path, capsys):
        def grey(index, width, height):
            return np.repeat((255 * blob(index, (height, width))).astype(np.uint8)[..., None], 3, axis=2)

        (tmp_path / "maps").mkdir()
        for name, frames in (("one", 5), ("two", 3)):
            make_video(tmp_path / "maps" / f"{name}.mp4", frames, picture=grey, sound=None)
        args = ["--dataset", "folder", "--root", root, "--predictions", tmp_path / "maps"]
        code, _, _ = evaluate(capsys, *args, "--output", tmp_path / "out")
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert code == 0 and scores["scores"]["predictions"]["cc"] > 0.9

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--dataset", "nothing"], "there is no data set 'nothing'"),
            (["--dataset", "AVAD"], "needs --root"),
            (["--dataset", "AVAD", "--root", "nowhere"], "nowhere"),
            (["--dataset", "synthetic", "--split", "holdout"], "no split 'holdout'"),
            (["--dataset", "synthetic", "--fold", "2"], "fold"),
            (["--dataset", "synthetic", "--fold", "x"], "numbers with commas between"),
            (["--dataset", "synthetic", "--metrics", "cc,magic"], "there is no metric 'magic'"),
            (["--dataset", "synthetic", "--baselines", "magic"], "there is no baseline 'magic'"),
            (["--dataset", "synthetic", "--predictions", "nowhere"], "no such folder of predictions"),
            (["--dataset", "synthetic", "--model", "nowhere"], "nowhere"),
            (["--dataset", "synthetic", "--metrics", ","], "at least one is needed"),
            (["--dataset", "synthetic", "--steps", "5000"], "DDIMScheduler cannot take 5000 steps"),
            (["--dataset", "synthetic", "--predictions", ".", "--modality", "a"], "--modality is for a model"),
            (["--dataset", "synthetic", "--allow-missing"], "--allow-missing is for --predictions"),
        ],
    )
    def test_one_sentence(self, args, message, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = evaluate(capsys, *args)
        assert code in (1, 2) and message in err and out == ""
        assert "Traceback" not in err

    def test_an_empty_root(self, tmp_path, capsys):
        (tmp_path / "videos").mkdir()
        (tmp_path / "maps").mkdir()
        code, _, err = evaluate(capsys, "--dataset", "folder", "--root", tmp_path)
        assert code == 1 and str(tmp_path) in err


def test_published_rows_stand_beside_ours():
    from diffsal_diffusers.evaluation import markdown_table

    table = markdown_table("AVAD", {"model": dict.fromkeys(METRIC_NAMES, 0.5)}, {"model": "mine"}, METRIC_NAMES)
    assert "| DiffSal (published) | 0.738 | 4.220 | 0.935 | 0.571 |" in table
    assert table.splitlines()[-1] == "| mine | 0.500 | 0.500 | 0.500 | 0.500 |"
    assert sim is METRICS["sim"].function
