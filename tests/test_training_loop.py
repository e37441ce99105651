"""The training loop: killed and resumed, several processes, checkpoints, adapters, and what goes wrong."""

import errno
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import dataset_trees as trees
import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from diffsal_diffusers.training import checkpoints as checkpoints_module
from diffsal_diffusers.training import train as train_module
from diffsal_diffusers.training import validation as validation_module
from diffsal_diffusers.training.config import build_config
from diffsal_diffusers.training.train import main, train
from diffsal_diffusers.training.validation import step_pictures
from diffusers import DiffusionPipeline
from launching import finish, launch
from media_files import make_video
from safetensors.torch import load_file
from stand_ins import TINY_UNET, tiny_pipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffsal_diffusers import InputError, SaliencyUNet
from diffsal_diffusers.data import SyntheticScene

ROOT = Path(__file__).parent.parent
TINY = {
    "model": {
        "video": "timm/test_efficientnet",
        "audio": "log_mel_cnn",
        "frame_size": [32, 64],
        "num_frames": 4,
        "num_inference_steps": 2,
        "unet": {key: list(value) if isinstance(value, tuple) else value for key, value in TINY_UNET.items()},
    },
    "data": [{"name": "synthetic", "limit": 4}],
    "batch_size": 2,
    "steps": 4,
    "learning_rate": 1e-3,
    "workers": 0,
    "log_every": 1,
    "drop_audio": 0.2,
    "drop_video": 0.2,
}
VALIDATION = {"data": {"name": "synthetic", "split": "validation", "limit": 3}, "frame_step": 25, "every": 2}


def config(output: Path, **changes) -> dict:
    return TINY | {"output": str(output)} | changes


def losses(output: Path) -> dict[int, float]:
    """The logged loss by step."""
    return read_log(output, "loss")


def read_log(output: Path, name: str) -> dict[int, float]:
    """What was logged by step; of a step that was done twice, the last one."""
    found = {}
    for file in sorted((output / "logs" / "training").glob("events*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        found |= {event.step: event.value for event in events.Scalars(name)}
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a pipeline's folder."""
    parts = ("unet", "video_encoder", "audio_encoder")
    files = [folder / part / "diffusion_pytorch_model.safetensors" for part in parts]
    return {f"{f.parent.name}.{name}": value for f in files for name, value in load_file(f).items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if tolerance:
            torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert torch.equal(one[name], other[name]), name


def assert_learned_alike(one: Path, other: Path) -> None:
    """From the checkpoint of step 2 to that of step 4, the weights of two runs changed in the same way."""
    changes = []
    for run in (one, other):
        begin, end = (weights(run / "checkpoints" / f"step-0000000{step}") for step in (2, 4))
        changes.append(torch.cat([(end[n] - begin[n]).flatten().float() for n in sorted(begin)]))
    assert changes[0].norm() > 0
    assert (changes[0] - changes[1]).norm() < 0.1 * changes[0].norm()


def first_gradients(output: Path) -> dict[str, torch.Tensor]:
    """The gradients of a run's first step, from the state of Adam."""
    file = output / "checkpoints" / "step-00000001" / "training_state" / "optimizer.bin"
    state = torch.load(file, weights_only=True)["state"]
    return {str(i): s["exp_avg"] / 0.1 for i, s in state.items()}


class TestGoingOn:
    @pytest.mark.slow
    def test_killed_at_any_moment_it_goes_on_bit_for_bit(self, tmp_path):
        """40 steps at once, against 40 steps killed at random moments and resumed: losses and weights are equal."""
        common = {"steps": 40, "checkpoint_every": 3, "lr_schedule": "cosine", "self_aligned": 0.3, "workers": 1}
        common["validation"] = VALIDATION | {"every": 5}
        assert finish(launch(config(tmp_path / "whole", **common), tmp_path))[0] == 0
        settings, chance, kills, resume = config(tmp_path / "killed", **common), random.Random(0), 0, ()
        for _ in range(20):
            process = launch(settings, tmp_path, *resume, start_new_session=True)
            folder = tmp_path / "killed" / "checkpoints"
            already = len(list(folder.glob("step-*[0-9]")))
            if kills < 3:
                while process.poll() is None and len(list(folder.glob("*"))) <= already:
                    time.sleep(0.02)
                time.sleep(chance.uniform(0, 0.5))
            if kills < 3 and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                resume = ("--resume", "latest") if list(folder.glob("step-*[0-9]")) else ()
                continue
            assert finish(process)[0] == 0
            break
        assert kills == 3
        assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
        name = "checkpoints/step-00000040"
        assert_same(weights(tmp_path / "killed" / name), weights(tmp_path / "whole" / name))
        raw = [load_file(tmp_path / run / name / "training_state/model.safetensors") for run in ("killed", "whole")]
        assert_same(*raw)
        assert_same(*(weights(tmp_path / run / "checkpoints/best") for run in ("killed", "whole")))

    def test_resumed_it_is_the_same_run(self, tmp_path):
        whole = train(build_config(config(tmp_path / "whole", steps=4, checkpoint_every=2)))
        train(build_config(config(tmp_path / "parts", steps=4, checkpoint_every=2)))
        last = tmp_path / "parts" / "checkpoints" / "step-00000004"
        for file in sorted(last.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        last.rmdir()
        resumed = train(build_config(config(tmp_path / "parts", steps=4, checkpoint_every=2)), resume="latest")
        assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
        assert_same(weights(resumed), weights(whole))

    def test_it_goes_on_with_another_learning_rate(self, tmp_path):
        common = {"steps": 4, "lr_schedule": "linear", "learning_rate_scale": {"unet": 0.5}, "checkpoint_every": 2}
        train(build_config(config(tmp_path / "run", **common | {"steps": 2})))
        train(build_config(config(tmp_path / "run", **common, learning_rate=1e-5)), resume="latest")
        rates = read_log(tmp_path / "run", "learning_rate")
        assert rates[3] == pytest.approx(0.5 * 1e-5 * 2 / 4) and rates[4] == pytest.approx(0.5 * 1e-5 * 1 / 4)

    def test_frozen_networks_are_those_of_the_checkpoint(self, tmp_path):
        """Not those of the folder that the run began with, which may have changed since."""
        base = train(build_config(config(tmp_path / "base", steps=1)))
        settings = config(tmp_path / "run", model={"folder": str(base), "freeze": ["video_encoder"]})
        train(build_config(settings | {"steps": 1}))
        changed = train(build_config(config(tmp_path / "other", steps=1, seed=5)))
        shutil.rmtree(base)
        changed.rename(base)
        last = train(build_config(settings | {"steps": 2}), resume="latest")
        raw = load_file(last / "training_state" / "model.safetensors")
        frozen = {n: v for n, v in weights(last).items() if n.startswith("video_encoder")}
        assert_same(frozen, {n: v for n, v in raw.items() if n.startswith("video_encoder")})

    def test_another_resolution(self, tmp_path):
        """A run goes on from a folder's networks at its own resolution, or at the one that it is told."""
        base = train(build_config(config(tmp_path / "base", steps=1)))
        for size, expected in ((None, (32, 64)), ([64, 96], (64, 96))):
            model = {"folder": str(base), "frame_size": size}
            last = train(build_config(config(tmp_path / str(size), model=model, steps=1, learning_rate=1e-12)))
            assert tuple(DiffusionPipeline.from_pretrained(last).processor.config.frame_size) == expected
            for name, value in weights(base).items():
                torch.testing.assert_close(weights(last)[name], value, atol=1e-9, rtol=0)
        model = {"folder": str(base), "frame_size": [64, 100]}
        with pytest.raises(InputError, match="`frame_size` must be two positive multiples of 32"):
            train(build_config(config(tmp_path / "odd", model=model)))

    def test_killed_while_it_validates_it_validates_again(self, tmp_path, monkeypatch):
        """At every step once in the end, and with the same best, whatever was killed; nothing is validated twice."""
        changes = {"steps": 5, "checkpoint_every": 2, "validation": VALIDATION}  # the last step is no second one
        train(build_config(config(tmp_path / "whole", **changes)))
        validate, done, kills = train_module.validate, [], [2, 4, 5]

        def killed(accelerator, pipe, config, entries, step):
            if step in kills:
                kills.remove(step)
                raise KeyboardInterrupt
            done.append(step)
            return validate(accelerator, pipe, config, entries, step)

        monkeypatch.setattr(train_module, "validate", killed)
        for resume in (None, "latest", "latest"):
            with pytest.raises(KeyboardInterrupt):
                train(build_config(config(tmp_path / "killed", **changes)), resume=resume)
        assert done == [2, 4]
        train(build_config(config(tmp_path / "killed", **changes)), resume="latest")
        train(build_config(config(tmp_path / "killed", **changes)), resume="latest")
        assert done == [2, 4, 5]
        best = [
            json.loads((tmp_path / r / "checkpoints/best/validation.json").read_text()) for r in ("whole", "killed")
        ]
        assert best[0] == best[1]

    def test_killed_between_two_renames_the_best_comes_back(self, tmp_path):
        folder = tmp_path / "run" / "checkpoints"
        train(build_config(config(tmp_path / "run", steps=2, validation=VALIDATION)))
        before = weights(folder / "best")
        (folder / "best").rename(folder / ".best.old")
        shutil.copytree(folder / "step-00000002", folder / ".step-00000001.old")
        train(build_config(config(tmp_path / "run", steps=3)), resume="latest")
        assert sorted(path.name for path in folder.iterdir()) == ["best", "step-00000002", "step-00000003"]
        assert_same(weights(folder / "best"), before)

    def test_later_checkpoints_are_not_given_up_in_silence(self, tmp_path):
        train(build_config(config(tmp_path / "run", steps=4, checkpoint_every=2)))
        early = tmp_path / "run" / "checkpoints" / "step-00000002"
        with pytest.raises(InputError, match="holds other checkpoints, the last one step-00000004; to go on from"):
            train(build_config(config(tmp_path / "run")), resume=str(early))
        assert train(build_config(config(tmp_path / "other", steps=3)), resume=str(early)).name == "step-00000003"

    def test_another_batch_or_no_checkpoint(self, tmp_path):
        with pytest.raises(InputError, match="no checkpoint to resume from"):
            train(build_config(config(tmp_path / "run")), resume="latest")
        train(build_config(config(tmp_path / "run", steps=1)))
        with pytest.raises(InputError, match="was trained with batch_size = 2, and this run has 4"):
            train(build_config(config(tmp_path / "run", batch_size=4)), resume="latest")
        with pytest.raises(InputError, match="holds a run already; go on with --resume latest"):
            train(build_config(config(tmp_path / "run")))

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path):
        train(build_config(config(tmp_path / "run", steps=1)))
        frozen = TINY["model"] | {"freeze": ["video_encoder"]}
        with pytest.raises(InputError, match="step-00000001: this run cannot go on from it, since its networks, what"):
            train(build_config(config(tmp_path / "run", model=frozen)), resume="latest")
        wider = TINY["model"] | {"unet": TINY["model"]["unet"] | {"head_channels": 24}}
        with pytest.raises(InputError, match="step-00000001: this run cannot go on from it"):
            train(build_config(config(tmp_path / "run", model=wider)), resume="latest")
        state = tmp_path / "run" / "checkpoints" / "step-00000001" / "training_state"
        (state / "ema.pt").unlink()
        with pytest.raises(InputError, match=r"cannot go on from it, .*ema\.pt"):
            train(build_config(config(tmp_path / "run")), resume="latest")
        assert train(build_config(config(tmp_path / "run", ema_decay=0.0)), resume="latest").name == "step-00000004"


class TestProcesses:
    @pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
    def test_sharded_training_is_the_same_run(self, kind, tmp_path):
        """Two processes that share the state of training out train, validate, save and go on as one process does."""
        if kind == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("deepspeed is not installed: it is built on the machine, and no dependency")
        changes = {"validation": VALIDATION, "checkpoint_every": 2, "learning_rate_scale": {"video_encoder": 0.1}}
        train(build_config(config(tmp_path / "one", **changes)))
        for steps, resume in ((2, ()), (4, ("--resume", "latest"))):
            settings = config(tmp_path / "two", **changes, steps=steps)
            code, _, err = finish(launch(settings, tmp_path, *resume, processes=2, sharded=kind))
            assert code == 0, err
        for step, value in losses(tmp_path / "one").items():
            assert losses(tmp_path / "two")[step] == pytest.approx(value, rel=1e-3)
        assert_learned_alike(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
    def test_the_shipped_settings_are_the_tested_ones(self, kind):
        file = ROOT / "training" / "accelerate_configs" / f"{kind}.yaml"
        shipped = load_config_from_file(str(file)).to_dict()
        assert shipped["distributed_type"] == kind.upper() and shipped["mixed_precision"] == "no"
        text = (ROOT / "tests" / "sharded_on_cpu.py").read_text()
        for name, value in shipped[f"{kind}_config"].items():
            variable = name.upper() if kind == "fsdp" else f"ACCELERATE_DEEPSPEED_{name.upper()}"
            assert f'"{variable}": "{str(value).lower() if value in (True, False) else value}"' in text

    def test_sharded_checkpoints_are_refused_in_a_sentence(self, tmp_path):
        train(build_config(config(tmp_path / "run", steps=1)))
        code, _, err = finish(
            launch(config(tmp_path / "run"), tmp_path, "--resume", "latest", processes=2, sharded="fsdp")
        )
        assert code == 1 and "was made with NO, and this run has FSDP: go on with the same" in err, err

    def test_what_sharding_cannot_do(self, tmp_path):
        settings = config(tmp_path / "run", mixed_precision="bf16")
        code, _, err = finish(launch(settings, tmp_path, processes=2, sharded="fsdp"))
        assert code == 1 and "train: with FSDP training is in float32 only: `mixed_precision` must be no" in err

    def test_two_processes_go_on_where_one_stopped(self, tmp_path):
        """They train, validate, save and resume as the one would have."""
        changes = {"validation": VALIDATION, "checkpoint_every": 2}
        one = train(build_config(config(tmp_path / "one", **changes)))
        train(build_config(config(tmp_path / "two", **changes, steps=2)))
        code, out, err = finish(
            launch(config(tmp_path / "two", **changes, steps=3), tmp_path, "--resume", "latest", processes=2)
        )
        assert code == 0 and "was made by 1 process(es), and here are 2" in err, err
        code, out, err = finish(
            launch(config(tmp_path / "two", **changes), tmp_path, "--resume", "latest", processes=2)
        )
        assert code == 0, err
        two = Path(out.strip().splitlines()[-1])
        assert two.name == one.name == "step-00000004"
        for step, value in losses(tmp_path / "one").items():
            assert losses(tmp_path / "two")[step] == pytest.approx(value, rel=1e-4)
        scores = [
            json.loads((tmp_path / run / "checkpoints/best/validation.json").read_text()) for run in ("one", "two")
        ]
        assert scores[0]["step"] == scores[1]["step"] and scores[0]["cc"] == pytest.approx(scores[1]["cc"], abs=1e-3)

    def test_gradients_of_two_processes_are_those_of_one(self, tmp_path):
        """The state of Adam after one step is the gradient: two processes of one clip, and one of two."""
        train(build_config(config(tmp_path / "one", steps=1, max_grad_norm=1e9)))
        code, _, err = finish(launch(config(tmp_path / "two", steps=1, max_grad_norm=1e9), tmp_path, processes=2))
        assert code == 0, err
        gradients = [first_gradients(tmp_path / run) for run in ("one", "two")]
        assert max(g.abs().max() for g in gradients[0].values()) > 1e-3
        assert_same(*gradients, atol=1e-5, rtol=1e-4)


class TestCheckpoints:
    def test_a_checkpoint_is_a_pipeline_with_the_averaged_weights(self, tmp_path):
        folder = train(build_config(config(tmp_path / "run", ema_decay=0.9, checkpoint_every=1)))
        pipe = DiffusionPipeline.from_pretrained(folder)
        assert pipe.config.default_num_inference_steps == 2
        raw = load_file(folder / "training_state" / "model.safetensors")
        averaged = torch.load(folder / "training_state" / "ema.pt", weights_only=True)["shadow_params"]
        name, value = next(iter(pipe.unet.named_parameters()))
        assert torch.equal(value.data, averaged[0]) and not torch.equal(value.data, raw[f"unet.{name}"])

    def test_the_last_ones_are_kept_and_the_best(self, tmp_path):
        changes = {"steps": 5, "checkpoint_every": 1, "keep_checkpoints": 2, "validation": VALIDATION}
        train(build_config(config(tmp_path / "run", **changes)))
        folder = tmp_path / "run" / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == ["best", "step-00000004", "step-00000005"]
        DiffusionPipeline.from_pretrained(folder / "best")
        assert not (folder / "best" / "training_state").exists()

    def test_a_full_disk_loses_nothing(self, tmp_path, monkeypatch):
        train(build_config(config(tmp_path / "run", steps=2)))
        before = weights(tmp_path / "run" / "checkpoints" / "step-00000002")

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints_module, "save_pipeline", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); the 1 earlier ones are"):
            train(build_config(config(tmp_path / "run", steps=3)), resume="latest")
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
        assert_same(weights(tmp_path / "run" / "checkpoints" / "step-00000002"), before)

    def test_files_that_the_system_refuses_lose_nothing(self, tmp_path):
        """As a full disk does, the limit of a file's size ends a write in the middle."""
        train(build_config(config(tmp_path / "run", steps=2)))
        before = weights(tmp_path / "run" / "checkpoints" / "step-00000002")

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

        process = launch(
            config(tmp_path / "run", steps=3), tmp_path, "--resume", "latest", preexec_fn=limit,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        code, _, err = finish(process)
        assert code == 1 and "step-00000003: the checkpoint cannot be written (" in err, err
        assert "the 1 earlier ones are complete" in err
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
        assert_same(weights(tmp_path / "run" / "checkpoints" / "step-00000002"), before)


class TestSettings:
    @pytest.mark.parametrize("changes", [{"accumulation": 2}, {"gradient_checkpointing": True}])
    def test_what_saves_memory_changes_nothing(self, changes, tmp_path):
        train(build_config(config(tmp_path / "one", steps=1, max_grad_norm=1e9)))
        train(build_config(config(tmp_path / "two", steps=1, max_grad_norm=1e9, **changes)))
        assert losses(tmp_path / "two")[1] == pytest.approx(losses(tmp_path / "one")[1], rel=1e-4)
        assert_same(*(first_gradients(tmp_path / run) for run in ("one", "two")), atol=1e-5, rtol=1e-4)

    def test_half_precision(self, tmp_path, request):
        train(build_config(config(tmp_path / "one")))
        AcceleratorState._reset_state()  # which takes one precision a process
        request.addfinalizer(AcceleratorState._reset_state)
        folder = train(build_config(config(tmp_path / "two", mixed_precision="bf16")))
        whole, half = losses(tmp_path / "one"), losses(tmp_path / "two")
        assert half[1] == pytest.approx(whole[1], rel=0.05) and half[1] != whole[1]
        assert all(value.dtype in (torch.float32, torch.int64) for value in weights(folder).values())  # int64: counts

    def test_learning_rates_by_component(self, tmp_path):
        start = weights(train(build_config(config(tmp_path / "none", steps=1, ema_decay=0.0, learning_rate=1e-12))))
        scale = {"video_encoder": 1e-9}
        folder = train(build_config(config(tmp_path / "run", steps=1, ema_decay=0.0, learning_rate_scale=scale)))
        change = {name: (value - start[name]).abs().max() for name, value in weights(folder).items()}
        assert max(v for n, v in change.items() if n.startswith("video_encoder")) < 1e-8
        assert max(v for n, v in change.items() if n.startswith("unet")) > 5e-4

    def test_other_views_are_another_run(self, tmp_path):
        for name, augment in (("one", False), ("two", True), ("again", True)):
            train(build_config(config(tmp_path / name, steps=2, augment=augment)))
        assert losses(tmp_path / "two") == losses(tmp_path / "again") != losses(tmp_path / "one")

    def test_the_largest_seed(self, tmp_path):
        for seed in (2**28 - 1, 2**28 - 2):
            train(build_config(config(tmp_path / str(seed), steps=1, seed=seed, augment=True)))
        assert 0 < losses(tmp_path / str(2**28 - 1))[1] != losses(tmp_path / str(2**28 - 2))[1]

    def test_weights_of_timesteps(self, tmp_path):
        train(build_config(config(tmp_path / "one", steps=1)))
        train(build_config(config(tmp_path / "two", steps=1, snr_gamma=1e-3)))
        assert 0 < losses(tmp_path / "two")[1] <= 1e-3 * losses(tmp_path / "one")[1] * 1.001


class TestWhatTrains:
    def test_frozen_networks_stay(self, tmp_path):
        model = TINY["model"] | {"freeze": ["video_encoder", "audio_encoder"]}
        before = weights(train(build_config(config(tmp_path / "one", steps=1, ema_decay=0.0))))
        one = train(build_config(config(tmp_path / "two", model=model, steps=1, ema_decay=0.0)))
        two = train(build_config(config(tmp_path / "three", model=model, steps=3, ema_decay=0.0)))
        for name, value in weights(one).items():
            frozen = not name.startswith("unet")
            if frozen:
                assert torch.equal(value, weights(two)[name]), name
        assert any(not torch.equal(before[n], v) for n, v in weights(one).items() if n.startswith("video_encoder"))
        assert any(not torch.equal(v, weights(two)[n]) for n, v in weights(one).items() if n.startswith("unet"))

    def test_adapters(self, tmp_path):
        base = train(build_config(config(tmp_path / "base", steps=1)))
        model = {"folder": str(base), "lora_rank": 2}
        folder = train(build_config(config(tmp_path / "lora", model=model, steps=3, learning_rate=0.1)))
        adapted = DiffusionPipeline.from_pretrained(folder)
        pipe = DiffusionPipeline.from_pretrained(base)
        for name in ("video_encoder", "audio_encoder"):
            assert_same(getattr(pipe, name).state_dict(), getattr(adapted, name).state_dict())
        changed = [n for n, v in pipe.unet.state_dict().items() if not torch.equal(v, adapted.unet.state_dict()[n])]
        assert changed and all(
            n.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight")) for n in changed
        )
        pipe.unet.load_lora_adapter(str(folder / "unet_lora"), prefix=None, use_safetensors=True)
        sample = torch.randn(1, 1, 32, 64, generator=torch.Generator().manual_seed(0))
        video = [
            torch.randn(1, c, 2, 32 // s, 64 // s)
            for c, s in zip(pipe.unet.config.video_channels, (4, 8, 16, 32), strict=True)
        ]
        with torch.no_grad():
            outputs = [p.unet(sample, 500, video).sample for p in (pipe, adapted)]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)

    def test_stage_one_then_stage_two(self, tmp_path):
        """The video branch alone, then everything on what it learned."""
        alone = TINY["model"] | {"audio": None}
        first = train(build_config(config(tmp_path / "first", model=alone, steps=2)))
        both = {"folder": str(first), "audio": "log_mel_cnn"}
        second = train(build_config(config(tmp_path / "second", model=both, steps=1, learning_rate=1e-9)))
        for unet, message in (({"atention": "sca"}, "no key"), ({"head_channels": "many"}, "no network can be made")):
            with pytest.raises(InputError, match=message):
                train(build_config(config(tmp_path / "wrong", model=both | {"unet": unet})))
        pipe, start = DiffusionPipeline.from_pretrained(second), DiffusionPipeline.from_pretrained(first)
        assert start.audio_encoder is None and pipe.audio_encoder is not None
        assert_same(start.video_encoder.state_dict(), pipe.video_encoder.state_dict(), atol=1e-5, rtol=1e-4)
        learned = {name: value for name, value in start.unet.state_dict().items() if "audio" not in name}
        carried = {name: value for name, value in pipe.unet.state_dict().items() if name in learned}
        assert len(carried) == len(learned)
        assert_same(learned, carried, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"model": TINY["model"] | {"freeze": ["unet", "video_encoder", "audio_encoder"]}},
                "nothing is left to train",
            ),
            ({"model": TINY["model"] | {"freeze": ["encoder"]}}, "`model.freeze` may name unet"),
            ({"learning_rate_scale": {"encoder": 0.1}}, "`learning_rate_scale` has numbers above 0 for unet"),
            ({"batch_size": 3, "accumulation": 2}, "`batch_size` = 3 must be divisible by"),
            ({"data": []}, "`data` must name at least one data set"),
            ({"data": [{"name": "nothing"}]}, "there is no data set 'nothing'"),
            ({"loss": {"l1": 1.0}}, "there is no loss 'l1'"),
            ({"scheduler": "heun"}, "there is no scheduler 'heun'"),
            ({"model": TINY["model"] | {"unet": {"atention": "sca"}}}, "there is no key `model.unet.atention`"),
            ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1, got 0"),
            ({"drop_audio": 0.7, "drop_video": 0.7}, "must not be more than 1 together"),
            ({"validation": {"data": {"name": "nothing"}}}, "there is no data set 'nothing'"),
            (
                {"model": TINY["model"] | {"unet": {"head_channels": "many"}}},
                "`model` has settings of which no network",
            ),
            (
                {"model": TINY["model"] | {"unet": {"attention": "none"}, "lora_rank": 2}},
                "adapts the U-Net's attention",
            ),
            ({"seed": -1}, "`seed` must be at least 0"),
            ({"workers": -1}, "`workers` must be at least 0"),
            ({"learning_rate": -1.0}, "`learning_rate` must be above 0"),
            ({"lr_schedule": "sine"}, "`lr_schedule` must be one of linear"),
            ({"validation": {"metric": "kl"}}, "`validation.metric` must be one of cc"),
        ],
    )
    def test_wrong_settings(self, changes, message, tmp_path):
        with pytest.raises(InputError, match=message):
            train(build_config(config(tmp_path / "run", **changes)))
        assert not (tmp_path / "run" / "checkpoints").exists()  # seen before anything was trained

    def test_broken_data_is_one_sentence_out_of_a_worker(self, tmp_path, capsys):
        (tmp_path / "videos").mkdir()
        make_video(tmp_path / "videos" / "a.mp4", 5)
        (tmp_path / "maps" / "a").mkdir(parents=True)
        for i in range(5):
            (tmp_path / "maps" / "a" / f"{i}.png").write_bytes(b"no image")
        data = [{"name": "folder", "root": str(tmp_path), "split": "test"}]
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config(tmp_path / "run", data=data, strict=True, workers=1)))
        assert main(["--config", str(file)]) == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("train: ") and ".png cannot be read as an image" in last

    def test_broken_files_of_the_validation_are_left_out(self, tmp_path, monkeypatch):
        trees.audio_visual(tmp_path, lists={("train", 1): {"a": 6}, ("test", 1): {"b": 6, "c": 6, "d": 6}})
        maps = sorted((tmp_path / "annotations" / "AVAD" / "b").rglob("*.*"))
        maps += sorted((tmp_path / "video_frames" / "AVAD" / "d").rglob("*.*"))
        for file in maps:
            file.write_bytes(b"broken")
        assert maps
        data = {"name": "AVAD", "root": str(tmp_path), "split": "test", "fold": 1}
        validation = {"data": data, "frame_step": 3, "every": 1}
        warned = []
        monkeypatch.setattr(validation_module.logger, "warning", warned.append)
        train(build_config(config(tmp_path / "run", steps=1, validation=validation)))
        assert [message.split(":")[0] for message in warned] == [f"{v} is left out of the validation" for v in "bd"]
        assert "cc" in json.loads((tmp_path / "run/checkpoints/best/validation.json").read_text())
        with pytest.raises(InputError):
            train(build_config(config(tmp_path / "strict", steps=1, validation=validation, strict=True)))

    def test_settings_may_stand_after_options(self, tmp_path, capsys):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config(tmp_path / "run")))
        assert main(["--config", str(file), "steps=1", "--lora_rank", "2", "workers=-1"]) == 1
        assert "`workers` must be at least 0" in capsys.readouterr().err

    @torch.no_grad()
    def test_pictures_show_the_frame_its_truth_and_each_step(self):
        pipe = tiny_pipeline(num_inference_steps=3)
        scene = SyntheticScene(0, num_frames=11, size=(60, 90))
        strip = step_pictures(pipe, scene, seed=0)
        assert strip.shape == (120, 5 * 180, 3) and strip.dtype == np.uint8
        last = pipe(**scene.media(), frame_stride=5, generator=torch.Generator().manual_seed(0)).saliency[5]
        grey = strip[:, -180:, 0]
        assert abs(grey.mean() / 255 - last.mean()) < 0.02

    def test_a_loss_that_is_no_number(self, tmp_path, capsys):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config(tmp_path / "run", loss={"mse": 1e39})))
        assert main(["--config", str(file)]) == 1
        err = capsys.readouterr().err
        assert "the loss is inf at step 1" in err and "Traceback" not in err

    def test_a_network_that_gives_no_number(self, tmp_path, monkeypatch):
        """NaN out of the network is no loss of zero."""
        forward = SaliencyUNet.forward

        def broken(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            return type(output)(sample=output.sample * torch.nan)

        monkeypatch.setattr(SaliencyUNet, "forward", broken)
        with pytest.raises(InputError, match="the loss is nan at step 1"):
            train(build_config(config(tmp_path / "run")))
