"""Two gloo processes follow the trajectory of one, with DDP and with DeepSpeed, and resume it.

DDP is compared in float64, where two ways to add up one gradient differ by 1e-14 of it and stay so.
In float32 they differ by 1e-6, and once that decides on which side of a ReLU's kink an activation
lies, trajectories part: how far depends on method and seed (`benchmarks.checks.invariance`), and a
tolerance that covers it would hide real faults.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.conftest import grid_text

SAVE_AT = 3
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="DeepSpeed or a compiler is missing: pip install -e '.[deepspeed]', apt install g++",
)


def be_rank(rank: int, world: int, meeting: str) -> None:
    """Set the variables by which a process finds its group."""
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": "1",
            "SSMLL_RENDEZVOUS": meeting,
        }


def train(rank: int, world: int, grid: str, folder: str, method: str, strategy: str, stop: int):
    """Train one method as one of `world` processes; rank 0 saves what the test compares."""
    be_rank(rank, world, f"{folder}/meet-{strategy}-{stop}")
    torch.set_num_threads(1)
    from benchmarks.plan.grid import load
    from benchmarks.plan.jobs import resolve
    from benchmarks.training.build import build_trainer
    from benchmarks.training.checkpoint import Checkpoints
    from benchmarks.training.group import Group
    from benchmarks.training.host import TrainingHost
    from benchmarks.training.strategy import make
    from benchmarks.training.trainer import Interrupted
    from benchmarks.workspace import Workspace

    workspace = Workspace(Path(folder) / "data", Path(folder) / "runs")
    jobs = resolve(load(grid), workspace, progress=lambda title: lambda d, n: None, workers=1)
    (job,) = [job for job in jobs if job.spec.method == method]
    group = Group.join()
    parallel = make(strategy, job.cell.recipe.precision, group)
    # Without cpu=True accelerate would report one process on both ranks and test nothing.
    assert parallel.accelerator.num_processes == world
    steps = []
    trainer = build_trainer(
        job,
        None,
        parallel,
        checkpoints=Checkpoints(Path(folder) / f"checkpoints-{strategy}", 1e9),
        # Only one rank is asked to stop; both have to.
        host=TrainingHost(should_stop=lambda: steps.append(0) or (len(steps) == stop and rank == world - 1)),
    )
    resumed = trainer.resume()
    assert resumed == (Path(folder) / f"checkpoints-{strategy}").exists()
    if strategy != "ddp":
        assert type(trainer.model).__name__ == "DeepSpeedEngine"
        zero = trainer.optimizer.optimizer
        share = sum(part.numel() for part in zero.single_partition_of_fp32_groups)
        whole = sum(value.numel() for value in trainer.method.parameters() if value.requires_grad)
        # Each rank holds its share of the optimiser state, up to a few values of padding.
        assert abs(share - whole / world) <= 4 * len(zero.single_partition_of_fp32_groups)
    first, total = trainer.ema.steps, trainer.schedule.epochs * trainer.steps_per_epoch
    assert (first > 0) == resumed
    counted, batch = [], trainer.batches.batch

    def counting(indices, images):
        made = batch(indices, images)
        counted.append((made.global_step, made.total_steps))
        return made

    trainer.batches.batch = counting
    try:
        outcome = trainer.fit()
    except Interrupted:
        assert len(steps) == stop + (world > 1)  # a group knows of it one step later
    else:
        assert outcome.scores is not None  # every process ends with all scores
        # Ramps and the moving average's decay go on where the interrupted training was.
        assert counted == [(step, total) for step in range(first, total)]
        assert trainer.ema.steps == total
        masks = {key: v for key, v in trainer.method.state_dict().items() if "mask" in key}
        hidden = trainer.hidden_labels
        quality = hidden.summary() if hidden else None
        state = trainer.state()
        if rank == 0:
            kept = (outcome.scores, masks, quality, state["model"], state["ema"])
            torch.save(kept, Path(folder) / "out.pt")
    group.leave()


def outcome(world: int, grid: Path, folder: Path, method: str, strategy: str = "ddp", stop: int = 0):
    for used in folder.glob("meet-*"):
        used.unlink()
    mp.spawn(train, args=(world, str(grid), str(folder), method, strategy, stop), nprocs=world)
    file = folder / "out.pt"
    if stop:
        assert not file.exists()
        return None
    shutil.rmtree(folder / f"checkpoints-{strategy}")
    found = torch.load(file, weights_only=False)
    file.unlink()
    return found


@pytest.fixture(scope="module")
def grid(tmp_path_factory, voc_root):
    """45 unlabelled images: neither the batches nor the pool divide by two."""
    folder = tmp_path_factory.mktemp("grids")

    def write(method: str, precision: str = "fp64") -> Path:
        path = folder / f"{method}-{precision}.toml"
        text = grid_text(
            voc_root,
            f'["{method}"]',
            batch_labelled=5,
            batch_unlabelled=13,
            clip_norm=20.0,
            precision=f'"{precision}"',
        )
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def calm(tmp_path_factory, grid):
    """What undisturbed trainings end with; each is done once."""
    folder, found = tmp_path_factory.mktemp("calm"), {}

    def get(world: int, method: str, strategy: str = "ddp", precision: str = "fp64"):
        key = (world, method, strategy, precision)
        if key not in found:
            found[key] = outcome(world, grid(method, precision), folder, method, strategy)
        return found[key]

    return get


def assert_alike(one, two, tolerance: float = 0.0):
    """The same pseudo-labels and scores; without a tolerance for float32, float64 weights too."""
    scores = tolerance or 1e-6  # they are stored as float32
    torch.testing.assert_close(one[0], two[0], rtol=scores, atol=scores)
    if not tolerance:
        for first, second in zip(one[3:], two[3:], strict=True):  # model, moving average
            assert any(value.dtype == torch.float64 for value in first.values())
            for name, value in first.items():
                torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-9)
    assert one[0].dtype == torch.float32
    assert one[0].std() > 0.01
    assert one[1].keys() == two[1].keys()
    for name, mask in one[1].items():
        assert torch.equal(mask, two[1][name]), name
    assert one[2] == two[2]


@pytest.mark.parametrize(
    "method",
    [
        "csaa",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fixmatch", "supervised", "dualcoop")),
    ],
)
def test_two_processes_end_where_one_does(calm, method):
    assert_alike(calm(1, method), calm(2, method))


# Two processes that are asked at the last step but one of an epoch save after its last.
@pytest.mark.parametrize(
    ("first", "then"),
    [(2, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 2), (2, 2)))],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, grid, calm, first, then):
    outcome(first, grid("csaa"), tmp_path, "csaa", stop=SAVE_AT)
    assert_alike(calm(1, "csaa"), outcome(then, grid("csaa"), tmp_path, "csaa"))


@needs_deepspeed
@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        pytest.param(*pair, marks=pytest.mark.slow)  # a continued run is compared in `make test`
        for pair in (("zero2", "fixmatch"), ("zero1", "csaa"), ("zero2", "csaa"))
    ],
)
def test_deepspeed_ends_where_ddp_does(calm, strategy, method):
    # Engine and DDP add up the same two gradients, so float32 is enough; DeepSpeed has no other.
    ours, theirs = (calm(2, method, name, "fp32") for name in ("ddp", strategy))
    assert_alike(ours, theirs, 1e-3)


@needs_deepspeed
@pytest.mark.parametrize(
    ("first", "then"),
    [(2, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 2), (2, 2)))],
)
def test_a_deepspeed_run_is_continued(tmp_path, grid, calm, first, then):
    # FixMatch keeps to 1e-5 in float32 (CSAA's learning rate here is three times as high).
    file = grid("fixmatch", "fp32")
    outcome(first, file, tmp_path, "fixmatch", "zero2", stop=SAVE_AT)
    again = outcome(then, file, tmp_path, "fixmatch", "zero2")
    expected = calm(2, "fixmatch", "zero2", "fp32")
    assert_alike(expected, again, 1e-3)
    if first == then == 2:
        assert torch.equal(expected[0], again[0])  # the same sums in the same order


def come_apart(rank: int, folder: str) -> None:
    be_rank(rank, 2, f"{folder}/meet")
    from benchmarks.training.checkpoint import fingerprints
    from benchmarks.training.group import Group

    group = Group.join()
    assert group.start_max(rank) == 0  # nothing was asked before
    assert group.start_max(2 * (1 - rank)) == 1
    assert group.finish_max() == 2
    assert group.finish_max() == 0
    assert group.broadcast(7 + rank, rank) == (7, 0)
    values = [torch.ones(3, 5), torch.ones(7, dtype=torch.bool), torch.ones(2, dtype=torch.int64)]
    assert group.mismatches(fingerprints(values)) == []
    for k, changed in enumerate(values):
        if rank == 1:
            changed.view(-1)[-1] = 0
        assert group.mismatches(fingerprints(values)) == [(1, n) for n in range(k + 1)]
    group.leave()


def test_processes_that_come_apart_are_found(tmp_path):
    mp.spawn(come_apart, args=(str(tmp_path),), nprocs=2)
