"""Starts the training command as a user does."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def launch(
    settings: dict, folder: Path, *args, processes: int = 1, sharded: str | None = None, **kwargs
) -> subprocess.Popen:
    """Starts the command as a user does, in processes of its own."""
    file = folder / f"{Path(settings['output']).name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    # `accelerate launch` starts several processes for GPUs only; on the CPU torchrun does.
    if processes == 1:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_cpu_threads_per_process", "1"]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if sharded is None:
        command += [str(ROOT / "training" / "train.py")]
    else:
        command += [str(ROOT / "tests" / "sharded_on_cpu.py"), sharded]
    command += ["--config", str(file), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
