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
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import InputError
from ..pipelines import DiffSalPipeline, SaliencyPipeline
from .module import SaliencyTraining

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

    def is_validated(self, folder: Path) -> bool:
        """Whether the validation at a checkpoint's step was done to its end."""
        return (folder / STATE / "validated").exists()

    def set_validated(self, accelerator: Accelerator, step: int) -> None:
        """Notes that a step's validation is done, in its checkpoint where it has one."""
        folder = self.folder / f"step-{step:08d}" / STATE
        if accelerator.is_main_process and folder.exists():
            (folder / "validated").touch()

    def recover(self) -> None:
        """Puts right what a run left that was killed between two renames; for one process, before others look."""
        for old in self.folder.glob(".*.old"):
            final = self.folder / old.name[1 : -len(".old")]
            if final.exists() or final.name.startswith("step-"):  # replaced, or given up
                shutil.rmtree(old)
            else:
                os.replace(old, final)

    def save(
        self,
        accelerator: Accelerator,
        pipe: SaliencyPipeline,
        ema: EMAModel | None,
        progress: dict[str, object],
    ) -> Path:
        """Writes a checkpoint under a hidden name, and renames it when it is complete.

        Args:
            accelerator: whose state is saved: weights, optimizer, schedule.
            pipe: the pipeline as it is to be saved, see `copy_weights`.
            ema: moving averages of the trained weights.
            progress: the step, and whatever else a resumed run must know.

        Raises:
            InputError: it cannot be written; the earlier checkpoints are as they were.
        """
        name = f"step-{progress['step']:08d}"
        part = self.folder / f".{name}.part"
        with self._writing(accelerator, name, part):
            accelerator.save_state(str(part / STATE), safe_serialization=True)
            averages = None
            if ema is not None:
                averages = ema.state_dict() | {"shadow_params": [whole(a).cpu() for a in ema.shadow_params]}
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                save_pipeline(pipe, part)
                if averages is not None:
                    torch.save(averages, part / STATE / "ema.pt")
                (part / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
                self._replace(part, name)
                for old in self.all()[: -self.keep]:
                    self._replace(None, old.name)
        return self.folder / name

    def save_best(
        self,
        accelerator: Accelerator,
        pipe: SaliencyPipeline,
        scores: dict[str, float],
    ) -> None:
        """Writes the pipeline alone into `best`, with what it scored.

        Raises:
            InputError: it cannot be written; an earlier best is as it was.
        """
        part = self.folder / ".best.part"
        with self._writing(accelerator, "best", part):
            if accelerator.is_main_process:
                save_pipeline(pipe, part)
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
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
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

    def restore(self, folder: Path, accelerator: Accelerator, ema: EMAModel | None) -> None:
        """Brings weights, optimizer, schedule and averages back to where a checkpoint left them.

        Raises:
            InputError: it is of another network or other settings, or incomplete.
        """
        try:
            accelerator.load_state(str(folder / STATE))
            if ema is not None:
                averages = torch.load(folder / STATE / "ema.pt", map_location="cpu", weights_only=True)
                for here, saved in zip(ema.shadow_params, averages["shadow_params"], strict=True):
                    here.copy_(distribute_tensor(saved.to(here.device), here.device_mesh, here.placements)
                               if isinstance(here, DTensor) else saved)  # fmt: skip
                ema.load_state_dict(averages | {"shadow_params": ema.shadow_params})
        except (Exception, CheckpointException) as error:  # accelerate, torch and DeepSpeed raise all kinds here
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder}: this run cannot go on from it, since its networks, what of them is trained, or their "
                f"averages and precision are not this run's, or files are missing ({reason})"
            ) from error


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which every process may hold a shard, in full. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_weights(
    module: SaliencyTraining, ema: EMAModel | None, trained: Sequence[torch.nn.Parameter], pipe: SaliencyPipeline
) -> None:
    """Copies the weights into a pipeline, averaged where there are averages. All processes must call this.

    Args:
        module: the networks in training, which may be in shards.
        ema: moving averages of `trained`.
        trained: its weights that are trained.
        pipe: a copy of the pipeline that `module` was made of.
    """
    averages = dict(zip(trained, ema.shadow_params, strict=True)) if ema is not None else {}
    for name, network in module.named_children():
        for copied, parameter in zip(getattr(pipe, name).parameters(), network.parameters(), strict=True):
            copied.copy_(whole(averages.get(parameter, parameter)))
        for copied, buffer in zip(getattr(pipe, name).buffers(), network.buffers(), strict=True):
            copied.copy_(buffer)


def save_pipeline(pipe: SaliencyPipeline, folder: Path) -> None:
    """Writes the pipeline; one with adapters with these merged, and the adapters by themselves too."""
    if isinstance(pipe, DiffSalPipeline) and getattr(pipe.unet, "peft_config", None):
        pipe.unet.save_lora_adapter(folder / ADAPTER, adapter_name="default")
        pipe = merged_pipeline(pipe)
    pipe.save_pretrained(folder)


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
    return {name: pipe.config[name] for name in ("default_num_inference_steps", "default_frame_stride")}
