"""Trains DiffSal or SalFoM: `accelerate launch training/train.py --config light output=runs/light`.

One loop over the functions of this package: networks, data, optimizer, steps, validation, checkpoints.
"""

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration, set_seed
from diffsal_diffusers.pipelines import DiffSalPipeline, SaliencyPipeline
from diffsal_diffusers.schedulers import create_scheduler
from diffsal_diffusers.training.checkpoints import STATE, Checkpoints, copy_weights, whole
from diffsal_diffusers.training.config import TrainingConfig, list_configs, load_config
from diffsal_diffusers.training.data import StepSampler, change_view, draw_views
from diffsal_diffusers.training.memory import summarize
from diffsal_diffusers.training.module import DiffSalTraining, SalFoMTraining
from diffsal_diffusers.training.networks import build_pipeline, require_package
from diffsal_diffusers.training.validation import load_validation, validate
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import ConcatDataset, DataLoader
from tqdm.auto import tqdm

from diffsal_diffusers import InputError
from diffsal_diffusers.data import SaliencyClips, load_saliency_dataset
from diffsal_diffusers.metrics import METRICS


def build_data(config: TrainingConfig, pipe: SaliencyPipeline) -> list[SaliencyClips]:
    """The data sets of the mix."""
    if not config.data:
        raise InputError("`data` must name at least one data set")
    clips = []
    for data in config.data:
        videos = load_saliency_dataset(data.name, data.root, split=data.split, fold=data.fold)
        if data.limit is not None:
            videos = videos.select(range(min(data.limit, len(videos))))
        clips.append(SaliencyClips(videos, pipe.processor, stride=data.stride, strict=config.strict))
    return clips


def train(config: TrainingConfig, resume: str | None = None) -> Path:
    """Trains as the config says.

    Args:
        config: the settings.
        resume: `"latest"` or the folder of a checkpoint to go on from.

    Returns:
        the last checkpoint, a pipeline's folder.

    Raises:
        InputError: the config, the data, the disk or the loss is wrong; the message says which.
    """
    # 1. Prepare processes, networks and data.
    if config.tracker != "none":
        require_package(config.tracker, "`tracker`; none does without")
    output = Path(config.output)
    accelerator = Accelerator(
        # Said outright, since accelerate takes torchrun's processes for one each where there is no GPU.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=config.mixed_precision,  # null: what `accelerate launch` says
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    set_seed(config.seed)
    check_sharding(accelerator, config)
    checkpoints, first_step, best = Checkpoints(output / "checkpoints", config.keep_checkpoints), 0, None
    if accelerator.is_main_process:
        checkpoints.recover()
    accelerator.wait_for_everyone()
    if resume is None and checkpoints.all():
        raise InputError(f"{output} holds a run already; go on with --resume latest, or give another `output`")
    pipe = build_pipeline(config)
    clips = build_data(config, pipe)
    validation_videos = load_validation(config)
    share = accelerator.num_processes * config.accumulation
    if config.batch_size % share:
        raise InputError(
            f"`batch_size` = {config.batch_size} must be divisible by the processes times `accumulation`, "
            f"{accelerator.num_processes} x {config.accumulation}"
        )
    epoch_clips = config.epoch_clips or sum(len(c) for c in clips)
    steps = config.steps or math.ceil(config.epochs * epoch_clips / config.batch_size)

    # 2. Prepare the optimizer.
    if isinstance(pipe, DiffSalPipeline):
        # All samplers share the forward process of equation 1. Some of diffusers' classes add noise by the steps that
        # they were last set to, so the pipeline's own is for sampling only.
        module = DiffSalTraining(copy.deepcopy(pipe), config, create_scheduler("ddim")).train()
    else:
        module = SalFoMTraining(copy.deepcopy(pipe), config).train()
    pipe.to(accelerator.device)  # what is validated and saved: whole in every process, with averaged weights
    groups = [
        {"params": [p for p in network.parameters() if p.requires_grad],
         "lr": config.learning_rate * config.learning_rate_scale.get(name, 1.0)}
        for name, network in module.networks.items()
    ]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError("nothing is left to train: `model.freeze` names all networks")
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = get_scheduler(
        config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    base_rates = list(schedule.base_lrs)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    accelerator.register_for_checkpointing(schedule)
    trained = [p for p in module.parameters() if p.requires_grad]  # FSDP has put shards in their place
    ema = EMAModel(trained, decay=config.ema_decay, use_ema_warmup=True) if config.ema_decay else None

    # 3. Resume.
    if resume is not None:
        folder = checkpoints.find(resume)
        progress = read_progress(folder, config, epoch_clips, accelerator)
        if checkpoints.all() and checkpoints.all()[-1].resolve() != folder.resolve():
            raise InputError(
                f"{output} holds other checkpoints, the last one {checkpoints.all()[-1].name}; to go on from {folder} "
                "give another `output`"
            )
        checkpoints.restore(folder, accelerator, ema)
        # The learning rate is this run's, which may have been given another one.
        schedule.base_lrs = base_rates
        for group, base, factor in zip(optimizer.param_groups, base_rates, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = base, base * factor(schedule.last_epoch)
            group["weight_decay"] = config.weight_decay
        copy_weights(module, ema, trained, pipe)
        first_step, best = progress["step"], checkpoints.best(config.validation.metric)

    sampler = StepSampler(
        [len(c) for c in clips], [d.weight for d in config.data], epoch_clips,
        config.batch_size // share, accelerator.num_processes, accelerator.process_index, config.accumulation,
        first_step, steps, config.seed,
    )  # fmt: skip
    loader = DataLoader(
        ConcatDataset(clips), batch_sampler=sampler, num_workers=config.workers,
        pin_memory=accelerator.device.type == "cuda", generator=torch.Generator(),
    )  # fmt: skip
    if accelerator.is_main_process:
        print(summarize(config, pipe, clips, steps, accelerator), file=sys.stderr)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    if config.tracker != "none":
        accelerator.init_trackers("training")

    # 4. Train.
    size, per_batch = tuple(pipe.processor.config.frame_size), config.batch_size // share
    bar = tqdm(
        total=steps, initial=first_step, unit="step", dynamic_ncols=True,
        disable=None if accelerator.is_main_process else True,
    )  # fmt: skip
    batches, saved = iter(loader), None
    due = first_step % config.validation.every == 0 or first_step == steps
    if resume is not None and due and not checkpoints.is_validated(folder):
        # It was killed before that validation's end.
        best = find_best(accelerator, pipe, config, validation_videos, checkpoints, first_step, best)
    waited, paused, began = 0.0, 0.0, time.perf_counter()
    for step in range(first_step, steps):
        total = torch.zeros((), device=accelerator.device)
        for part in range(config.accumulation):
            before = time.perf_counter()
            batch = to_device(next(batches), accelerator.device)
            waited += time.perf_counter() - before
            begin = (part * accelerator.num_processes + accelerator.process_index) * per_batch
            places = range(begin, begin + per_batch)
            if config.augment:
                views = (view.to(accelerator.device) for view in draw_views(config.seed, step, places))
                batch = change_view(batch, *views)
            chance = module.draw_chance(step, places, size)
            if chance is not None:
                chance = chance.to(accelerator.device)
            # Networks that drop parts at random draw from torch's own generator: let that follow from the step, too.
            torch.manual_seed((config.seed * 1_000_003 + step) * 65_537 + begin)
            last = part == config.accumulation - 1
            with torch.enable_grad() if last else accelerator.no_sync(wrapped):
                loss = wrapped(batch, chance).mean() / config.accumulation
                accelerator.backward(loss)
            total += loss.detach()
        value = accelerator.reduce(total, "mean").item()
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {step + 1}: a smaller `learning_rate`, or `mixed_precision` no, may "
                f"help; {len(checkpoints.all())} checkpoints are kept in {checkpoints.folder}"
            )
        norm = float(whole(accelerator.clip_grad_norm_(trained, config.max_grad_norm)) or 0)
        if accelerator.scaler is None and not math.isfinite(norm):
            raise InputError(
                f"the gradient is {norm} at step {step + 1}: a smaller `learning_rate` may help; "
                f"{len(checkpoints.all())} checkpoints are kept in {checkpoints.folder}"
            )
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(trained)

        # 5. Tell, save, validate.
        done = step + 1
        bar.update()
        seconds = time.perf_counter() - began - paused
        speed = (done - first_step) * config.batch_size / seconds
        bar.set_postfix(loss=f"{value:.4f}", clips=f"{speed:.1f}/s")
        if done % config.log_every == 0 or done == steps:
            if bar.disable and accelerator.is_main_process:  # no terminal: a line now and then, for a log
                print(f"step {done} of {steps}: loss {value:.5f}, {speed:.1f} clips/s", file=sys.stderr)
            accelerator.log(
                {"loss": value, "learning_rate": rate, "gradient_norm": norm,
                 "clips_per_second": speed, "share_of_time_waiting_for_data": waited / seconds}, step=done,
            )  # fmt: skip
        saves = done % config.checkpoint_every == 0 or done == steps
        validates = config.validation.data is not None and (done % config.validation.every == 0 or done == steps)
        pausing = time.perf_counter()
        if saves or validates:
            copy_weights(module, ema, trained, pipe)
        if saves:
            progress = {
                "step": done, "batch_size": config.batch_size, "epoch_clips": epoch_clips, "seed": config.seed,
                "processes": accelerator.num_processes, "kind": accelerator.distributed_type.value,
            }  # fmt: skip
            saved = checkpoints.save(accelerator, pipe, ema, progress)
        if validates:
            best = find_best(accelerator, pipe, config, validation_videos, checkpoints, done, best)
        paused += time.perf_counter() - pausing
    bar.close()
    for dataset in clips:
        dataset.report_skipped()
    accelerator.end_training()
    return saved or checkpoints.find("latest")


def find_best(
    accelerator: Accelerator,
    pipe: SaliencyPipeline,
    config: TrainingConfig,
    videos: list[dict],
    checkpoints: Checkpoints,
    step: int,
    best: float | None,
) -> float | None:
    """Validates, and keeps the pipeline where it is better than all before; the best score."""
    if not videos:
        return best
    score = validate(accelerator, pipe, config, videos, step)[config.validation.metric]
    sign = 1 if METRICS[config.validation.metric].higher_is_better else -1
    if math.isfinite(score) and (best is None or sign * score > sign * best):
        best = score
        checkpoints.save_best(accelerator, pipe, {"step": step, config.validation.metric: score})
    checkpoints.set_validated(accelerator, step)
    return best


def check_sharding(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Refuses what the loop cannot do where processes share the state of training, and sets DeepSpeed up."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    if accelerator.mixed_precision != "no":
        raise InputError(f"with {kind.value} training is in float32 only: `mixed_precision` must be no")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("of FSDP, version 2 is needed: `fsdp_version: 2` in the config of accelerate")
    if kind == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage > 2:
            raise InputError("of DeepSpeed, ZeRO stages up to 2 work; FSDP shares the weights too")
        if config.accumulation > 1:
            raise InputError("with DeepSpeed `accumulation` must be 1")
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size // accelerator.num_processes
        plugin.deepspeed_config["gradient_clipping"] = config.max_grad_norm


def read_progress(folder: Path, config: TrainingConfig, epoch_clips: int, accelerator: Accelerator) -> dict:
    """Where a checkpoint stood, if this run may go on from it."""
    progress = json.loads((folder / STATE / "progress.json").read_text())
    for name, here in (("batch_size", config.batch_size), ("seed", config.seed), ("epoch_clips", epoch_clips)):
        if progress[name] != here:
            raise InputError(
                f"{folder} was trained with {name} = {progress[name]}, and this run has {here}: it would not see the "
                "same data; give the same"
            )
    kind, processes = accelerator.distributed_type.value, accelerator.num_processes
    sharded = {DistributedType.FSDP.value, DistributedType.DEEPSPEED.value}
    before = progress.get("kind", kind)
    if before != kind and sharded & {before, kind}:
        raise InputError(f"{folder} was made with {before}, and this run has {kind}: go on with the same")
    if progress["processes"] != processes:
        if kind == DistributedType.DEEPSPEED.value:
            raise InputError(
                f"{folder} was made by {progress['processes']} processes, and with DeepSpeed as many must go on, "
                f"here are {processes}"
            )
        accelerator.print(
            f"note: the checkpoint was made by {progress['processes']} process(es), and here are {processes}: clips "
            "and noise stay the same",
            file=sys.stderr,
        )
    return progress


def to_device(batch: dict, device: torch.device) -> dict:
    """The tensors of a batch on a device."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any setting can be overridden: learning_rate=1e-4 data.0.root=/data model.unet.attention=sca",
    )  # fmt: skip
    parser.add_argument("--config", required=True, help=f"a YAML file, or one of {', '.join(list_configs())}")
    parser.add_argument("--resume", metavar="WHICH", help="go on: `latest`, or a checkpoint's folder")
    parser.add_argument("--lora_rank", type=int, metavar="N", help="train adapters of this rank; model.lora_rank=N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings in place of the config's")
    args = parser.parse_intermixed_args(argv)
    overrides = args.overrides + ([f"model.lora_rank={args.lora_rank}"] if args.lora_rank is not None else [])
    try:
        folder = train(load_config(args.config, overrides), args.resume)
    except KeyboardInterrupt:
        print("interrupted; go on with --resume latest", file=sys.stderr)
        return 130
    except InputError as error:
        # Out of a data worker it comes wrapped in the worker's traceback.
        print(f"train: {str(error).rsplit('InputError: ', 1)[-1].strip()}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            "train: the device's memory is full; a smaller `batch_size`, more `accumulation`, or "
            "`gradient_checkpointing` takes less",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"train: {error.filename or args.config}: {error.strerror or error}", file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
