"""Weights drawn by a rule from their names: a test needs no weight file and depends on no initialisation."""

import zlib

import numpy as np
import torch
from torch import nn


def reference_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """The tensor called `name`: its own random stream, with the variance of a network at the start of training."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith("running_var"):
        return torch.from_numpy(np.asarray(0.5 + rng.random(shape, dtype=np.float32)))
    values = np.asarray(rng.standard_normal(shape, dtype=np.float32))
    if len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:])).astype(np.float32)
    elif name.endswith("weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.05) * values
    return torch.from_numpy(values)


def draw_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fills a module by the rule, in evaluation mode."""
    state = {name: reference_tensor(name, tuple(t.shape), seed) for name, t in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()
