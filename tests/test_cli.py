"""The `diffsal` command: what it writes, and what it says of input that is wrong."""

import csv
import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
from diffsal_diffusers.schedulers import create_scheduler
from diffusers import DiffusionPipeline
from media_files import make_video
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_ins import tiny_pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffsal_diffusers import DiffSalPipeline, load_pipeline, pretrained
from diffsal_diffusers.cli import main
from diffsal_diffusers.cli.predict import end
from diffsal_diffusers.media.video import open_video
from diffsal_diffusers.media.writers import AttentionWriter

EXAMPLE = Path(__file__).parent.parent / "examples" / "big_buck_bunny.mp4"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ALL = "overlay,heatmap,maps,csv"


class Run(NamedTuple):
    """How a command ended: its exit code, and the lines that it wrote."""

    code: int
    out: list[str]
    err: list[str]


@pytest.fixture
def diffsal(capfd):
    """Runs the command in this process; what FFmpeg writes to stderr by itself is seen too."""

    def run(*args) -> Run:
        capfd.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as error:
            code = error.code
        out, err = capfd.readouterr()
        return Run(code, out.splitlines(), err.splitlines())

    return run


def process(*args, **kwargs) -> subprocess.Popen:
    """Starts the command in a process of its own."""
    command = [sys.executable, "-m", "diffsal_diffusers.cli", *map(str, args)]
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # where the tests run in a shell's background
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Small media files; tests only read them."""
    folder = tmp_path_factory.mktemp("media")
    make_video(folder / "clip.mp4", 10)
    make_video(folder / "five.mp4", 5)
    make_video(folder / "one.mp4", 1)
    return folder


@pytest.fixture
def predict(diffsal, model, tmp_path):
    """`diffsal predict` with the tiny model, into `tmp_path / "out"`."""

    def run(*args) -> Run:
        return diffsal("predict", *args, "--model", model, "--output", tmp_path / "out")

    return run


def written(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir() or folder == file)


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def check_refused(run: Run, *fragments: str, code: int = 1) -> None:
    """One sentence, which holds the fragments."""
    assert run.code == code
    assert run.out == []
    assert len(run.err) == 1, run.err
    assert run.err[0].startswith("diffsal")
    for fragment in fragments:
        assert fragment in run.err[0]


def shown(path: Path) -> np.ndarray:
    with open_video(path) as source:
        return np.stack([frame.pixels for frame in source])


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def pipeline_maps(model, video, seed=0, scheduler="ddim", dtype=torch.float32, **settings) -> np.ndarray:
    """The maps from Python, as 16-bit images hold them."""
    pipe = load_pipeline(model).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = create_scheduler(scheduler)
    saliency = pipe(video, generator=torch.Generator().manual_seed(seed), **settings).saliency
    return np.round(65535 * saliency)


@pytest.fixture(scope="module")
def default_maps(model, media):
    return pipeline_maps(model, media / "five.mp4")


class TestResults:
    def test_every_format(self, predict, media, tmp_path):
        run = predict(media / "clip.mp4", "--formats", ALL)
        out = tmp_path / "out"
        names = ["clip_overlay.mp4", "clip_saliency.mp4", "clip_saliency", "clip_attention.csv"]
        assert run == Run(0, [str(out / name) for name in names], [])
        assert sorted(os.listdir(out)) == sorted(names)

        assert shown(out / "clip_overlay.mp4").shape == (10, 48, 64, 3)
        assert sound_packets(out / "clip_overlay.mp4") == sound_packets(media / "clip.mp4")
        maps = images(out / "clip_saliency")
        assert maps.shape == (10, 48, 64) and maps.dtype == np.uint16
        assert sorted(os.listdir(out / "clip_saliency"))[0] == "00000.png"
        with av.open(str(out / "clip_saliency.mp4")) as container:
            assert not container.streams.audio
            grey = np.stack([f.to_ndarray()[:48] for f in container.decode(video=0)])
        np.testing.assert_allclose(grey / 1023, maps / 65535, atol=0.01)

        table = rows(out / "clip_attention.csv")
        columns = "frame time_s peak_x peak_y centroid_x centroid_y spread_px entropy_bits"
        assert list(table[0]) == columns.split()
        assert [int(row["frame"]) for row in table] == list(range(10))
        np.testing.assert_allclose([float(row["time_s"]) for row in table], np.arange(10) / 25, atol=1e-5)
        for row, saliency in zip(table, maps, strict=True):
            assert saliency[int(row["peak_y"]), int(row["peak_x"])] == saliency.max()

    @pytest.mark.parametrize(
        ("options", "settings"),
        [
            ("--seed 7", {"seed": 7}),
            ("--scheduler euler --steps 2", {"scheduler": "euler", "num_inference_steps": 2}),
            ("--steps 1", {"num_inference_steps": 1}),
            ("--no-audio", {"audio": False}),
            ("--frame-stride 4", {"frame_stride": 4}),
            ("--ensemble 2 --batch-size 3", {"ensemble_size": 2, "batch_size": 3}),
            ("--start 0.08 --duration 0.08", {"start": 0.08, "duration": 0.08}),
            ("--dtype bfloat16", {"dtype": torch.bfloat16}),
        ],
    )
    def test_options_are_those_of_the_pipeline(self, predict, media, model, default_maps, tmp_path, options, settings):
        run = predict(media / "five.mp4", "--formats", "maps", *options.split())
        assert run.code == 0 and run.err == []
        maps = images(tmp_path / "out" / "five_saliency")
        np.testing.assert_array_equal(maps, pipeline_maps(model, media / "five.mp4", **settings))
        assert not np.array_equal(maps, default_maps)

    def test_a_second_run_replaces_the_first(self, predict, media, tmp_path):
        predict(media / "clip.mp4", "--formats", ALL)
        before = (tmp_path / "out" / "clip_overlay.mp4").read_bytes()
        assert predict(media / "clip.mp4", "--formats", ALL, "--duration", "0.12").code == 0
        assert len(os.listdir(tmp_path / "out" / "clip_saliency")) == 3
        assert len(rows(tmp_path / "out" / "clip_attention.csv")) == 3
        assert (tmp_path / "out" / "clip_overlay.mp4").read_bytes() != before
        assert not hidden(tmp_path)

    def test_names_with_spaces_and_colons_into_a_new_nested_folder(self, diffsal, media, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(media / "one.mp4", "12:30 tälk {} %d.mp4")  # a relative path with a colon looks like a URL
        run = diffsal("predict", "12:30 tälk {} %d.mp4", "--model", model, "--output", "deep/er results")
        assert run.code == 0 and run.err == []
        kinds = ("attention.csv", "overlay.mp4", "saliency.mp4")
        assert written(tmp_path / "deep/er results") == [f"12:30 tälk {{}} %d_{kind}" for kind in kinds]
        assert sound_packets(tmp_path / "deep/er results" / "12:30 tälk {} %d_overlay.mp4")

    def test_a_folder_of_frames_with_a_wav(self, predict, tmp_path):
        frames = tmp_path / "take.1"
        frames.mkdir()
        for i in range(5):
            Image.fromarray(np.full((21, 33, 3), 40 * i, np.uint8)).save(frames / f"{i}.png")
        make_video(frames / "sound.wav", 5, picture=None, audio_codec="pcm_s16le")
        assert predict(frames, "--fps", "10").code == 0
        assert shown(tmp_path / "out" / "take.1_overlay.mp4").shape == (5, 22, 34, 3)
        assert sound_packets(tmp_path / "out" / "take.1_overlay.mp4")
        assert rows(tmp_path / "out" / "take.1_attention.csv")[-1]["time_s"] == "0.400000"

    @pytest.mark.parametrize(
        ("frames", "settings", "size"),
        [
            (1, {}, (48, 64)),
            (3, {"frame_rate": 30}, (48, 64)),
            (15, {}, (48, 64)),
            (3, {"size": (2, 2)}, (2, 2)),
            (3, {"size": (65, 49), "pixel_format": "yuv444p"}, (50, 66)),
            (10, {"sound_duration": 0.1}, (48, 64)),
            (10, {"sound_duration": 1.5}, (48, 64)),
            (10, {"sound_start": 0.2}, (48, 64)),
        ],
        ids=["one_frame", "0.1_s", "15_frames", "2x2", "odd", "short_sound", "long_sound", "late_sound"],
    )
    def test_unusual_videos(self, predict, tmp_path, frames, settings, size):
        grey = lambda index, width, height: np.full((height, width, 3), 90 + index, np.uint8)  # noqa: E731
        video = make_video(tmp_path / "video.mp4", frames, picture=grey, **settings)
        run = predict(video)
        assert run.code == 0 and run.err == []
        out = tmp_path / "out"
        assert shown(out / "video_overlay.mp4").shape == (frames, *size, 3)
        assert shown(out / "video_saliency.mp4").shape == (frames, *shown(video).shape[1:])
        assert len(rows(out / "video_attention.csv")) == frames
        assert sound_packets(out / "video_overlay.mp4")

    @pytest.mark.slow
    def test_8k(self, predict, tmp_path):
        grey = lambda index, width, height: np.full((height, width, 3), 90, np.uint8)  # noqa: E731
        video = make_video(tmp_path / "8k.mp4", 2, size=(7680, 4320), picture=grey)
        assert predict(video, "--formats", "overlay,csv").code == 0
        assert shown(tmp_path / "out" / "8k_overlay.mp4").shape == (2, 4320, 7680, 3)
        assert len(rows(tmp_path / "out" / "8k_attention.csv")) == 2


class TestVideosThatAreWrong:
    @pytest.mark.parametrize(
        ("name", "fragment"),
        [
            ("none.mp4", "no such file"),
            ("folder", "holds no images"),
            ("empty.mp4", "is empty (0 bytes)"),
            ("text.mp4", "not a media file"),
            ("no_index.mp4", "cut short before its index"),
            ("cut.mp4", "cut short"),
            ("song.wav", "a video is needed"),
            ("x" * 300, "too long"),
        ],
    )
    def test_files(self, predict, media, tmp_path, name, fragment):
        (tmp_path / "folder").mkdir()
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "text.mp4").write_text("no video\n" * 100)
        data = (media / "clip.mp4").read_bytes()
        (tmp_path / "no_index.mp4").write_bytes(data[: len(data) // 2])
        if name == "cut.mp4":
            data = make_video(tmp_path / "whole.mp4", 50, options={"movflags": "faststart"}).read_bytes()
            (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
        make_video(tmp_path / "song.wav", 5, picture=None, audio_codec="pcm_s16le")
        check_refused(predict(tmp_path / name, "--formats", ALL), str(tmp_path / name), fragment)
        assert written(tmp_path / "out") == []

    def test_the_others_are_written(self, predict, media, tmp_path):
        (tmp_path / "bad.mp4").touch()
        run = predict(media / "one.mp4", tmp_path / "bad.mp4", media / "five.mp4", "--formats", "csv")
        assert run.code == 1
        assert len(run.err) == 1 and "bad.mp4 is empty" in run.err[0]
        assert written(tmp_path / "out") == ["five_attention.csv", "one_attention.csv"]
        assert run.out == [str(tmp_path / "out" / f"{name}_attention.csv") for name in ("one", "five")]

    def test_results_that_would_overwrite_each_other(self, predict, media, tmp_path):
        (tmp_path / "other").mkdir()
        shutil.copy(media / "clip.mp4", tmp_path / "other" / "clip.mkv")
        for second in (media / "clip.mp4", tmp_path / "other" / "clip.mkv"):
            run = predict(media / "clip.mp4", second)
            check_refused(run, "two of the videos are called clip", "different --output folders")
        assert not (tmp_path / "out").exists()

    def test_a_result_that_would_overwrite_a_video(self, diffsal, media, model, tmp_path):
        for name in ("clip.mp4", "clip_overlay.mp4"):
            shutil.copy(media / "one.mp4", tmp_path / name)
        videos = [tmp_path / "clip.mp4", tmp_path / "clip_overlay.mp4"]
        run = diffsal("predict", *videos, "--model", model, "--output", tmp_path)
        check_refused(run, f"{videos[1]} is one of the videos", "another --output")
        assert videos[1].read_bytes() == (media / "one.mp4").read_bytes()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--steps", "0"], ["--steps", "positive whole number", "'0'"]),
        (["--batch-size", "x"], ["--batch-size", "'x'"]),
        (["--scheduler", "nope"], ["--scheduler", "'nope'", "dpm++"]),
        (["--formats", "gif"], ["'gif'", "overlay, heatmap, maps, csv"]),
        (["--formats", ""], ["''", "overlay, heatmap, maps, csv"]),
        (["--formats", "overlay,"], ["''", "overlay, heatmap, maps, csv"]),
        (["--formats", "csv,csv"], ["csv is there twice"]),
        (["--dtype", "int8"], ["'int8'", "bfloat16"]),
        (["--seed", "-1"], ["--seed", "'-1'"]),
        (["--seed", str(2**64)], ["--seed", "2^64 - 1"]),
        (["--start", "-1"], ["--start", "'-1'"]),
        (["--start", "nan"], ["--start", "'nan'"]),
        (["--start", "1e300"], ["--start", "'1e300'"]),
        (["--duration", "0"], ["--duration", "above 0", "'0'"]),
        (["--fps", "0"], ["--fps", "above 0"]),
        (["--nope"], ["--nope"]),
    ],
)
def test_wrong_usage(predict, media, tmp_path, options, fragments):
    check_refused(predict(media / "one.mp4", *options), "--help", *fragments, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--device", "nonsense"], ["'nonsense'", "cpu always can"]),
        (["--device", "meta"], ["'meta'", "cpu always can"]),
        (["--start", "99"], ["one.mp4", "99 s"]),
        (["--fps", "10"], ["one.mp4", "leave fps out"]),
        (["--steps", "1001"], ["DDIMScheduler", "1001", "1000"]),
    ],
)
def test_options_that_do_not_fit(predict, media, tmp_path, options, fragments):
    check_refused(predict(media / "one.mp4", *options), *fragments)
    assert not (tmp_path / "out").exists()


def test_largest_seed(predict, media):
    assert predict(media / "one.mp4", "--formats", "csv", "--seed", str(2**64 - 1)).code == 0


class TestDisk:
    @pytest.mark.parametrize("output", ["file", "file/below"])
    def test_a_file_in_place_of_the_folder(self, diffsal, media, model, tmp_path, output):
        (tmp_path / "file").write_text("precious")
        run = diffsal("predict", media / "one.mp4", "--model", model, "--output", tmp_path / output)
        check_refused(run, f"cannot write {tmp_path / output}", "Not a directory")
        assert (tmp_path / "file").read_text() == "precious"

    def test_a_folder_of_other_files_in_place_of_the_maps(self, predict, media, tmp_path):
        other = tmp_path / "out" / "one_saliency" / "thesis.txt"
        other.parent.mkdir(parents=True)
        other.write_text("precious")
        check_refused(predict(media / "one.mp4", "--formats", ALL), "one_saliency", "other than numbered PNG")
        assert written(tmp_path / "out") == ["one_saliency/thesis.txt"]

    def test_full_disk(self, predict, media, tmp_path, monkeypatch):
        """Earlier results stay."""
        predict(media / "clip.mp4", "--formats", ALL, "--duration", "0.12")
        before = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
        save = Image.Image.save

        def fill(image, path, **kwargs):
            if path.name == "00005.png":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(image, path, **kwargs)

        monkeypatch.setattr(Image.Image, "save", fill)
        run = predict(media / "clip.mp4", "--formats", ALL)
        check_refused(run, "cannot write", "clip_saliency", "No space left on device")
        assert {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")} == before

    def test_a_limit_on_the_size_of_files(self, model, tmp_path):
        """What FFmpeg itself cannot write."""
        run = process(
            "predict", EXAMPLE, "--model", model, "--output", tmp_path / "out", "--duration", "1",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
        )  # fmt: skip
        out, err = run.communicate(timeout=120)
        check_refused(Run(run.returncode, out.splitlines(), err.splitlines()), "cannot write", "File too large")
        assert not any(name.endswith(".mp4") for name in written(tmp_path / "out"))
        assert not hidden(tmp_path)

    @pytest.mark.parametrize(
        ("number", "code", "message"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, None)],
        ids=["ctrl_c", "terminated"],
    )
    def test_a_stop_leaves_nothing(self, model, tmp_path, number, code, message):
        run = process("predict", EXAMPLE, "--model", model, "--output", tmp_path / "out", "--formats", ALL)
        while run.poll() is None and not list(tmp_path.glob("out/.diffsal-*/*/00003.png")):
            time.sleep(0.01)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
        assert (run.returncode, out) == (code, "")
        assert len(err.splitlines()) == (message is not None) and (message or "") in err
        assert written(tmp_path / "out") == [] and not hidden(tmp_path)


def drop_weight(folder):
    weights = load_file(folder / "unet" / WEIGHTS)
    del weights["audio_enhancement.mlp.2.weight"]
    save_file(weights, folder / "unet" / WEIGHTS)


def misshape_weight(folder):
    weights = load_file(folder / "unet" / WEIGHTS)
    weights["audio_enhancement.mlp.2.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "unet" / WEIGHTS)


def pickle_weights(folder):
    torch.save(load_file(folder / "unet" / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / WEIGHTS).unlink()


def change(file, **values):
    """Changes values of a JSON file of the model."""

    def damage(folder):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | values))

    return damage


class TestModels:
    @pytest.mark.parametrize(
        ("damage", "fragments"),
        [
            (drop_weight, ["unet", "missing", "audio_enhancement.mlp.2.weight"]),
            (misshape_weight, ["unet", "audio_enhancement.mlp.2.weight", "[128, 256]", "[3, 3]"]),
            (pickle_weights, ["unet", "complete safetensors file"]),
            (lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"cut"), ["unet", "complete safetensors file"]),
            (lambda folder: (folder / "model_index.json").write_text("{"), ["model_index.json", "save_pretrained"]),
            (lambda folder: (folder / "model_index.json").write_text("[]"), ["model_index.json", "save_pretrained"]),
            (lambda folder: (folder / "model_index.json").unlink(), ["model_index.json", "save_pretrained"]),
            (
                change("model_index.json", _class_name="DDPMPipeline"),
                ["must be one of DiffSalPipeline, SalFoMPipeline", "'DDPMPipeline'"],
            ),
            (change("model_index.json", unet=["diffsal_diffusers", "Nope"]), ["Nope", "save_pretrained"]),
            (change("model_index.json", unet=["os", "system"]), ["system", "save_pretrained"]),
            (change("model_index.json", unet=None), ["save_pretrained"]),
            (change("unet/config.json", norm_num_groups=0), ["`norm_num_groups` must be positive, got 0"]),
            (change("unet/config.json", head_channels="many"), ["save_pretrained"]),
            (change("scheduler/scheduler_config.json", beta_schedule="nope"), ["nope", "save_pretrained"]),
            (change("scheduler/scheduler_config.json", prediction_type="epsilon"), ["must be 'sample'", "'epsilon'"]),
            (change("processor/processor_config.json", frame_size=[65, 96]), ["multiples of 32", "65"]),
            *(
                (lambda folder, name=name: shutil.rmtree(folder / name), [f"names {name}", "no such folder"])
                for name in ("unet", "video_encoder", "scheduler", "processor")
            ),
        ],
    )
    def test_damaged_folders(self, diffsal, media, model, tmp_path, damage, fragments):
        folder = shutil.copytree(model, tmp_path / "damaged")
        damage(folder)
        run = diffsal("predict", media / "one.mp4", "--model", folder, "--output", tmp_path / "out")
        check_refused(run, *fragments)
        assert str(folder) in run.err[0] or "scheduler" in run.err[0]
        assert not (tmp_path / "out").exists()

    def test_nothing_more_is_predicted_for_files_that_cannot_be_written(self, predict, media, monkeypatch):
        taken, written = [], threading.Event()
        stream = DiffSalPipeline.stream

        def counted(self, *args, **kwargs):
            for item in stream(self, *args, **kwargs):
                taken.append(item)
                yield item
                assert written.wait(60)  # the first frame

        def full(self, *args):
            written.set()
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(DiffSalPipeline, "stream", counted)
        monkeypatch.setattr(AttentionWriter, "_write", full)
        run = predict(media / "clip.mp4", "--formats", "csv")
        check_refused(run, "clip_attention.csv", "No space left on device")
        assert len(taken) <= 3

    def test_the_last_frame_is_waited_for_however_often_one_interrupts(self):
        class Background:
            calls = 0

            def shutdown(self, cancel_futures):
                self.calls += 1
                if self.calls < 3:
                    raise KeyboardInterrupt

        background = Background()
        end(background)
        assert background.calls == 3

    @pytest.mark.parametrize("command", [["predict", "one.mp4"], ["info"]])
    def test_no_such_model(self, diffsal, command):
        check_refused(diffsal(*command, "--model", "nope"), "'nope'", "tiny, untrained-light, untrained-paper")

    def test_the_default_is_the_one_that_ships(self, diffsal, media, tmp_path):
        run = diffsal("predict", media / "five.mp4", "--output", tmp_path, "--formats", "csv")
        assert run.code == 0 and run.err == []
        peaks = [(row["peak_x"], row["peak_y"]) for row in rows(tmp_path / "five_attention.csv")]
        pipe = DiffusionPipeline.from_pretrained(pretrained("tiny"))
        maps = pipe(str(media / "five.mp4"), generator=torch.Generator().manual_seed(0)).saliency
        expected = [np.unravel_index(saliency.argmax(), saliency.shape) for saliency in maps]
        assert peaks == [(f"{column}", f"{row}") for row, column in expected]

    def test_an_untrained_one_says_so(self, diffsal, media, tmp_path):
        options = ["--model", "untrained-light", "--output", tmp_path, "--formats", "csv", "--steps", "1"]
        run = diffsal("predict", media / "one.mp4", *options)
        assert run.code == 0 and len(rows(tmp_path / "one_attention.csv")) == 1
        assert len(run.err) == 1 and "UNTRAINED" in run.err[0]

        run = diffsal("predict", tmp_path / "none.mp4", *options)
        assert run.code == 1 and len(run.err) == 2
        assert "UNTRAINED" in run.err[0] and "no such file" in run.err[1]

    def test_one_without_an_audio_encoder(self, diffsal, media, tmp_path):
        tiny_pipeline(audio=None).save_pretrained(tmp_path / "model")
        run = diffsal("predict", media / "one.mp4", "--model", tmp_path / "model", "--output", tmp_path / "out")
        assert run.code == 0 and run.err == []
        assert sound_packets(tmp_path / "out" / "one_overlay.mp4")


class TestInfoAndLists:
    def test_info(self, diffsal, model):
        run = diffsal("info", "--model", model)
        assert run.code == 0 and run.err == []
        pipe = load_pipeline(model)
        modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        parameters = sum(module.num_parameters() for module in modules) / 1e6
        text = "\n".join(run.out)
        for part in pipe.components.values():
            assert type(part).__name__ in text
        assert any(line.split() == ["total", f"{parameters:.2f}", "M", "parameters"] for line in run.out)

        # The counter knows torch's attention when it is written out in products of matrices.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as clip:
                video = pipe.video_encoder(torch.zeros(1, 3, 16, 64, 96)).features
                audio = pipe.audio_encoder(torch.zeros(1, 1, 9, *pipe.processor.config.audio_size)).features[0]
                conditions = pipe.unet.encode_conditions(64, 96, video, audio)
            with FlopCounterMode(display=False) as step:
                pipe.unet(torch.zeros(1, 1, 64, 96), 0, conditions=conditions)
        gflop = [counter.get_total_flops() / 1e9 for counter in (clip, step)]
        assert min(gflop) > 0.01
        assert f"operations: {gflop[0]:.2f} GFLOP once a clip, {gflop[1]:.2f} GFLOP a denoising step" in run.out

    def test_info_of_the_default_model(self, diffsal):
        run = diffsal("info")
        assert run.code == 0 and run.err == [] and run.out[0] == "tiny: DiffSalPipeline"
        assert "input: clips of 2 frames, 4 apart, resized to 256x416" in run.out

    def test_lists(self, diffsal):
        encoders, schedulers = diffsal("encoders"), diffsal("schedulers")
        assert encoders.code == schedulers.code == 0 and encoders.err == schedulers.err == []
        assert {"  mvit_v2_s", "  timm/<model>", "  log_mel_cnn", "  vggish"} < set(encoders.out)
        assert "ddim     DDIMScheduler" in schedulers.out

    def test_help(self, diffsal):
        for args, fragment in (([], "diffsal predict clip.mp4"), (["predict"], "clip_attention.csv")):
            run = diffsal(*args, "--help")
            assert run.code == 0 and run.err == []
            assert any(fragment in line for line in run.out)
            assert max(map(len, run.out)) <= 110
        check_refused(diffsal(), "COMMAND", "--help", code=2)


class TestTerminal:
    def test_a_silent_video_says_so_once_without_junk(self, model, tmp_path):
        """In a log there is no progress bar either."""
        make_video(tmp_path / "silent.mp4", 5, sound=None)
        # Cast to bfloat16, diffusers warns of each network. Its handler holds on to the process's first stderr.
        output = ["--model", model, "--output", tmp_path / "out"]
        run = process("predict", tmp_path / "silent.mp4", *output, "--dtype", "bfloat16")
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0 and len(out.splitlines()) == 3
        assert err == f"{tmp_path / 'silent.mp4'} has no sound: predicting from the picture alone\n"
        with av.open(str(tmp_path / "out" / "silent_overlay.mp4")) as container:
            assert not container.streams.audio and container.streams.video[0].frames == 5

    def test_progress_bar(self, media, model, tmp_path, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        output = ["--model", str(model), "--output", str(tmp_path / "out"), "--formats", "csv"]
        assert main(["predict", str(media / "clip.mp4"), *output]) == 0
        assert "clip.mp4: 100%" in terminal.getvalue() and "map/s]" in terminal.getvalue()

        # An error begins a line of its own.
        (tmp_path / "out" / "one_saliency").mkdir()
        monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        assert main(["predict", str(media / "one.mp4"), *output, "--formats", "maps"]) == 1
        last = terminal.getvalue().rstrip("\n").split("\n")[-1]
        assert last.startswith("diffsal: cannot write") and last.endswith("broken")
