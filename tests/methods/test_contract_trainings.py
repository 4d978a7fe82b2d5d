"""Every registered method, third-party ones included, through the contract's whole trainings."""

import pytest
import torch

pytest.register_assert_rewrite("benchmarks.checks.training_suite")

from benchmarks.checks.training_suite import *  # noqa: E402,F403 - its tests, fixtures and hook

torch.set_num_threads(1)
