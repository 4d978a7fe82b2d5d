"""The contract, for any registered method: the tests of `contract_suite` and `training_suite` on tiny tasks.

    from benchmarks.checks import contract
    contract.run(["my_method"])        # 0 if every test passes

Everything happens in one process. Several processes are simulated by threads, each with a copy of
the method and its share of the batch, as the trainer would give it (`Simulated`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import methods
from methods.backbones.clip import VisionLanguageModel
from methods.base import ALONE, Batch, FitMethod, Phase, Processes, StepMethod, StepOutput, Task, pool_of
from methods.errors import UserError, nearest
from methods.phases import main_of

NAMES = ("cat", "traffic light", "dog", "hair drier")
POOL, SIZE = 10, 64
OVERRIDES: dict[str, dict[str, Any]] = {"csaa": {"num_contexts": 2}}
"""Hyper-parameters that fit a task of four classes, where a method's defaults do not."""
PATIENCE = 60.0
"""Seconds after which a simulated process that the others wait for counts as lost."""


def run(
    names: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    arguments: Sequence[str] = (),
) -> int:
    """Run the contract suite on registered methods; what fails is printed by pytest.

    Args:
        names: the methods.
        overrides: hyper-parameters by method, where its defaults do not fit four classes.
        arguments: further ones for pytest, such as ``"-x"``.

    Returns:
        0 if all tests pass, 1 if one fails, or another exit code of pytest.

    Raises:
        UserError: a name is unknown; pytest is not installed.
    """
    for name in names:
        if name not in methods.available():
            raise UserError(f"no method {name!r}{nearest(name, methods.available())}")
    try:
        import pytest
    except ImportError:
        raise UserError("the contract suite needs pytest: pip install pytest") from None
    suites = [str(Path(__file__).with_name(name)) for name in ("contract_suite.py", "training_suite.py")]
    # The caller's own pytest settings and conftest files are not for this suite.
    settings = [
        "-c",
        os.devnull,
        "--rootdir",
        str(Path(__file__).parent),
        "--noconftest",
        "-p",
        "no:cacheprovider",
    ]
    settings += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins, in a process that has them
    selection = Selection(tuple(names), {**OVERRIDES, **(overrides or {})})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: several threads in each of several threads stall each other
    try:
        return int(pytest.main(["-q", *settings, *arguments, *suites], plugins=[selection]))
    finally:
        torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Selection:
    """A plugin of pytest that says which methods the suite is run on.

    Attributes:
        names: the methods.
        overrides: hyper-parameters by method.
    """

    names: tuple[str, ...]
    overrides: Mapping[str, Mapping[str, Any]]

    @property
    def step(self) -> list[str]:
        """Those that are trained in steps."""
        return [name for name in self.names if issubclass(methods.get(name), StepMethod)]

    @property
    def fit(self) -> list[str]:
        """Those that are fitted to features."""
        return [name for name in self.names if issubclass(methods.get(name), FitMethod)]

    def pytest_configure(self, config: Any) -> None:
        """Leave the selection where `selection_of` finds it."""
        config.contract_selection = self


def selection_of(config: Any) -> Selection:
    """The methods that a run of pytest is for; all registered ones if it was not told."""
    return getattr(config, "contract_selection", None) or Selection(tuple(methods.available()), OVERRIDES)


# -- a tiny task -------------------------------------------------------------------------------------


def tiny_backbone() -> VisionLanguageModel:
    """A random CLIP with a ResNet of four blocks, always the same, in evaluation mode."""
    made, tokenizer = _tiny_backbone()
    return copy.deepcopy(made, {id(tokenizer): tokenizer})


@functools.cache
def _tiny_backbone() -> tuple[VisionLanguageModel, Any]:
    """What `tiny_backbone` copies, and its tokenizer: reading that takes longer than a test."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=24,
            vision_cfg=open_clip.CLIPVisionCfg(layers=[1, 1, 1, 1], width=8, image_size=SIZE, head_width=32),
            text_cfg=open_clip.CLIPTextCfg(context_length=77, width=32, heads=2, layers=2),
        )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    # Zero residuals and batch statistics of nothing would make a random network constant.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(("bn3.weight", "positional_embedding")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    made = VisionLanguageModel(model, tokenizer, SIZE, "the contract's tiny CLIP", mean=mean, std=std)
    return made.eval(), tokenizer


def tiny_task(estimation: bool = False) -> Task:
    """Four classes, eight labelled and ten unlabelled images; every class occurs and is absent.

    Args:
        estimation: whether the last three of the pool are estimation images.
    """
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(8, len(NAMES), generator=generator) < 0.4).float()
    labels[0], labels[1] = 1, 0
    return Task(NAMES, NAMES, labels, POOL, seed=3, estimation=labels[:3].clone() if estimation else None)


def tiny_images(
    count: int, method: StepMethod | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Random images as a method takes them: (count, 3, S, S), or with patches (count, 1 + P, 3, S, S)."""
    patches = method.patches(method.hyper) if method is not None else 0
    parts = (1 + patches**2,) if patches else ()
    return torch.rand(count, *parts, 3, SIZE, SIZE, generator=generator)


def tiny_batch(
    labelled: int = 4,
    unlabelled: int = 6,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    method: StepMethod | None = None,
) -> Batch:
    """A batch of random images as a method takes them, the same for the same arguments."""
    generator = torch.Generator().manual_seed(7 + step)
    phase = main_phase(method)

    def images(count: int) -> Tensor:
        return tiny_images(count, method, generator).to(dtype)

    return Batch(
        epoch=0,
        step=step,
        labelled=torch.arange(labelled),
        weak_labelled=images(labelled),
        strong_labelled=images(labelled),
        targets=tiny_task().labels[:labelled].to(dtype),
        unlabelled=(torch.arange(unlabelled) + 3 * step) % POOL,
        weak_unlabelled=images(unlabelled),
        strong_unlabelled=images(unlabelled),
        global_labelled=labelled,
        global_unlabelled=unlabelled,
        phase=phase.name if phase else "",
    )


def main_phase(method: StepMethod | None) -> Phase | None:
    """The phase of a method with phases that is its semi-supervised part; None without phases."""
    return main_of(method.phases(method.hyper)) if method is not None else None


def create(name: str, overrides: Mapping[str, Any], task: Task | None = None) -> Any:
    """A fresh method on the tiny task."""
    share = methods.get(name).estimation_share(methods.registry.hyper(name, **overrides))
    return methods.create(
        name, backbone=tiny_backbone(), task=task or tiny_task(estimation=bool(share)), **overrides
    )


def started(method: StepMethod, dtype: torch.dtype = torch.float32) -> StepMethod:
    """The method as at the first step of its main phase: with a teacher, and pool scores if it wants them."""
    method.to(dtype)
    if phase := main_phase(method):
        method.begin_phase(phase.name)
    add_teacher(method)
    if method.wants_pool(0):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            images = tiny_images(2, method, generator).to(dtype)
            columns = method.eval().score_pool(images).shape[1]
        known = len(method.task.labels)
        sizes = {"scores": POOL, "labelled": known, "model_scores": POOL, "model_labelled": known}
        drawn = {
            kind: torch.randn(count, columns, generator=generator).to(dtype) for kind, count in sizes.items()
        }
        method.refresh(pool_of(method, 0, drawn.__getitem__))
    return method.train()


def add_teacher(method: StepMethod) -> None:
    """Give a method that asks for it a teacher: a copy of itself, with the method's state."""
    if method.wants_teacher:
        teacher = copy.deepcopy(method).eval().requires_grad_(False)
        teacher.share_state(method)
        method.set_teacher(teacher)


def copy_of(method: StepMethod) -> StepMethod:
    """A copy with a teacher of its own."""
    found = copy.deepcopy(method)
    add_teacher(found)
    return found


# -- steps -------------------------------------------------------------------------------------------


def forward(method: StepMethod, batch: Batch) -> StepOutput:
    """A step up to its losses: statistics, then `training_step`."""
    with torch.no_grad():
        if own := method.prepare(batch):
            method.observe(_totals(batch, own))
    return method(batch)


def after(method: StepMethod, batch: Batch, output: StepOutput) -> None:
    """What comes after the optimiser's step."""
    if output.statistics is not None:
        with torch.no_grad():
            method.observe_step(_totals(batch, output.statistics))


def _totals(batch: Batch, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch.total(value.detach()) for name, value in own.items()}


def share(batch: Batch, rank: int, world: int, processes: Processes = ALONE) -> Batch:
    """The rows of a batch that one of several processes gets, as the sampler shares them."""
    changed = {
        field.name: getattr(batch, field.name)[rank::world]
        for field in dataclasses.fields(Batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **changed, processes=processes)


class Simulated:
    """Several processes in one: a thread for each, whose tensors meet in `total` and `gather`.

    Results are connected with the tensors of all threads, so one backward pass through the sum of
    all losses gives what the processes' own backward passes add up to.

    Args:
        world: number of processes.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._slots: list[Any] = [None] * world
        self._barrier = threading.Barrier(world, timeout=PATIENCE)

    def run(self, work: Callable[[int, Processes], Any]) -> list[Any]:
        """Call ``work(rank, processes)`` in a thread for every process; what they return.

        Raises:
            Exception: the first that a process raised.
        """
        results: list[Any] = [None] * self.world
        errors: list[Exception] = []

        def one(rank: int) -> None:
            try:
                results[rank] = work(rank, _Member(self, rank))
                self.meet(rank, "the end", None)
            except Exception as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise (own or errors)[0]
        return results

    def meet(self, rank: int, call: str, value: Any) -> list[Any]:
        """Exchange a value with all processes, which have to make the same call."""
        self._slots[rank] = (call, value)
        self._barrier.wait()
        slots = list(self._slots)
        self._barrier.wait()  # nobody writes before all have read
        for other, (theirs, _) in enumerate(slots):
            if theirs != call:
                raise RuntimeError(f"process {rank} is at {call} while process {other} is at {theirs}")
        return [found for _, found in slots]


class _Member:
    """What a simulated process is given as `Processes`."""

    def __init__(self, simulated: Simulated, rank: int) -> None:
        self.simulated, self.rank = simulated, rank

    def total(self, value: Tensor) -> Tensor:
        call = f"batch.total of {tuple(value.shape)} {value.dtype}"
        return torch.stack(self.simulated.meet(self.rank, call, value)).sum(dim=0, dtype=value.dtype)

    def gather(self, rows: Tensor) -> Tensor:
        call = f"batch.gather of rows {tuple(rows.shape[1:])} {rows.dtype}"
        parts = self.simulated.meet(self.rank, call, rows)
        whole, world = sum(map(len, parts)), self.simulated.world
        shares = [len(range(k, whole, world)) for k in range(world)]
        if [len(part) for part in parts] != shares:
            raise ValueError(f"batch.gather of {[len(part) for part in parts]} rows; a batch has {shares}")
        order = torch.cat([torch.arange(k, whole, world) for k in range(world)])
        return torch.cat(parts)[order.argsort()]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:] or methods.available()))
