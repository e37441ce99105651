"""Checkpoints: complete pipeline folders with what is needed to go on, there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError

from ..errors import InputError
from ..pipelines import DiffSalPipeline

STATE = "training_state"
ADAPTER = "unet_lora"


class Checkpoints:
    """The checkpoints of a run: `step-00000100`, ..., the last few of them, and `best`.

    Args:
        folder: where they lie.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*[0-9]"))

    def save(
        self,
        accelerator: Accelerator,
        pipe: DiffSalPipeline,
        ema: EMAModel | None,
        trained: Sequence[torch.nn.Parameter],
        progress: dict[str, object],
    ) -> Path:
        """Writes a checkpoint under a hidden name, and renames it when it is complete.

        Args:
            accelerator: whose state is saved: weights, optimizer, schedule.
            pipe: the pipeline, its networks unwrapped.
            ema: moving averages of the trained weights; the pipeline's folder holds these.
            trained: the weights that they are of.
            progress: the step, and whatever else a resumed run must know.

        Raises:
            InputError: it cannot be written; the earlier checkpoints are as they were.
        """
        name = f"step-{progress['step']:08d}"
        part = self.folder / f".{name}.part"
        with self._writing(accelerator, name, part):
            accelerator.save_state(str(part / STATE), safe_serialization=True)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                save_pipeline(pipe, ema, trained, part)
                if ema is not None:
                    accelerator.save(ema.state_dict(), part / STATE / "ema.pt")
                (part / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
                self._replace(part, name)
                for old in self.all()[: -self.keep]:
                    self._replace(None, old.name)
        return self.folder / name

    def save_best(
        self,
        accelerator: Accelerator,
        pipe: DiffSalPipeline,
        ema: EMAModel | None,
        trained: Sequence[torch.nn.Parameter],
        scores: dict[str, float],
    ) -> None:
        """Writes the pipeline alone into `best`, with what it scored.

        Raises:
            InputError: it cannot be written; an earlier best is as it was.
        """
        part = self.folder / ".best.part"
        with self._writing(accelerator, "best", part):
            if accelerator.is_main_process:
                save_pipeline(pipe, ema, trained, part)
                (part / "validation.json").write_text(json.dumps(scores, indent=2) + "\n")
                self._replace(part, "best")

    def best(self, metric: str) -> float | None:
        """What the best checkpoint scored; `None` where there is none."""
        try:
            return json.loads((self.folder / "best" / "validation.json").read_text()).get(metric)
        except OSError:
            return None

    @contextmanager
    def _writing(self, accelerator: Accelerator, name: str, part: Path) -> Iterator[None]:
        """Makes an empty folder to write into; where writing fails, removes it and says so."""
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if accelerator.is_main_process:
                shutil.rmtree(part, ignore_errors=True)
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
            raise InputError(
                f"{self.folder / name}: the checkpoint cannot be written ({reason}); "
                f"the {len(self.all())} earlier ones are complete"
            ) from error
        accelerator.wait_for_everyone()

    def _replace(self, part: Path | None, name: str) -> None:
        """Renames a complete folder, in place of one of that name: neither is ever there in part."""
        final, old = self.folder / name, self.folder / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        if part is not None:
            os.replace(part, final)
        shutil.rmtree(old, ignore_errors=True)

    def find(self, which: str) -> Path:
        """The checkpoint to resume from: `"latest"`, or a folder's path.

        Raises:
            InputError: there is none.
        """
        if which == "latest":
            if not self.all():
                raise InputError(f"{self.folder}: there is no checkpoint to resume from")
            return self.all()[-1]
        if not Path(which, STATE, "progress.json").is_file():
            raise InputError(f"{which} is no checkpoint: it has no {STATE}/progress.json")
        return Path(which)


def save_pipeline(
    pipe: DiffSalPipeline, ema: EMAModel | None, trained: Sequence[torch.nn.Parameter], folder: Path
) -> None:
    """Writes the pipeline with the averaged weights, where there are any; adapters merged and by themselves too."""
    if ema is not None:
        ema.store(trained)
        ema.copy_to(trained)
    try:
        if getattr(pipe.unet, "peft_config", None):
            pipe.unet.save_lora_adapter(folder / ADAPTER, adapter_name="default")
            merged_pipeline(pipe).save_pretrained(folder)
        else:
            pipe.save_pretrained(folder)
    finally:
        if ema is not None:
            ema.restore(trained)


def merged_pipeline(pipe: DiffSalPipeline) -> DiffSalPipeline:
    """A pipeline whose U-Net has its adapters merged into its weights."""
    unet = type(pipe.unet).from_config(pipe.unet.config)
    state = {}
    for name, value in pipe.unet.state_dict().items():
        if "lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value.clone()
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    unet.load_state_dict(state)
    return type(pipe)(**{**pipe.components, "unet": unet.eval()}, **_settings(pipe))


def _settings(pipe: DiffSalPipeline) -> dict[str, object]:
    return {"default_num_inference_steps": pipe.config.default_num_inference_steps}
