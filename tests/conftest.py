"""Tests run on few threads, so that several can run side by side."""

import torch

torch.set_num_threads(1)
