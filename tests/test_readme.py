"""What the README shows is run as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffsal_diffusers.training.config import list_configs

import diffsal_diffusers
from diffsal_diffusers import DiffSalPipeline
from diffsal_diffusers.encoders import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(<!--.*?-->\n)?```python\n(.*?)```", README, flags=re.DOTALL)


def test_an_encoder_of_ones_own(tmp_path, monkeypatch):
    (block,) = [code for comment, code in BLOCKS if comment]
    assert re.findall(r"  # (\d)", block) == ["1", "2", "3", "4", "5"]  # "by five lines"
    (tmp_path / "my_encoder.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_VIDEO_ENCODERS", dict(registry._VIDEO_ENCODERS))
    import my_encoder

    small = {"block_out_channels": (8, 8, 16, 16), "head_channels": 8, "norm_num_groups": 4, "frame_size": (64, 96)}
    pipe = DiffSalPipeline.from_encoders(video="mine", audio=None, **small)
    assert isinstance(pipe.video_encoder, my_encoder.MyNetwork)
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffSalPipeline.from_pretrained(tmp_path / "model")
    for name, value in pipe.video_encoder.state_dict().items():
        assert (loaded.video_encoder.state_dict()[name] == value).all()


def test_the_code_for_python(tmp_path, monkeypatch):
    """The second block makes what the third one scores with."""
    use, build, salfom, score = (code for comment, code in BLOCKS if not comment)
    shutil.copy(ROOT / "examples" / "big_buck_bunny.mp4", tmp_path / "clip.mp4")
    use = use.replace('"clip.mp4"', '"clip.mp4", duration=0.1')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(build, names)
    exec(use, names)
    exec(score, names)
    with torch.device("meta"):  # half a billion numbers otherwise
        exec(salfom, names)
    assert names["ablation"].salfom.decoder.tcfe is None
    assert names["diffsal"].unet.config.video_time_slices == (8, 8, 8, 8)
    assert names["clips"][0]["frames"].shape == (16, 3, 224, 384)
    assert names["out"].saliency.shape == (3, 360, 640)
    assert type(names["pipe"].scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert names["paper"].video_encoder.config.num_frames == 16


def test_paths_and_flags_exist():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)|`([\w/]+/[\w.]+\.(?:py|md))`|python (\S+\.py)", README):
        name = next(filter(None, path))
        assert (ROOT / name).exists(), name
    commands = (["cli", "predict"], ["cli", "evaluate"], ["training.train"])
    told = "".join(
        subprocess.run(
            [sys.executable, "-m", f"diffsal_diffusers.{module}", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for module, *command in commands
    )
    for flag in re.findall(r"`(--[\w-]+)", README):
        assert flag in told, flag
    for name in re.findall(r"--config (\w+)", README):
        assert name in list_configs(), name


def test_the_version_is_in_the_changelog():
    assert f"## {diffsal_diffusers.__version__}" in (ROOT / "CHANGELOG.md").read_text()
