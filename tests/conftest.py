"""Settings for all tests."""

import os

import torch

# Small networks gain nothing from threads, and lose much where two processes share a small machine.
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
