"""Two gloo processes follow the trajectory of one: losses are those of the global batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.conftest import grid_text


def train(rank: int, world: int, port: int, grid: str, folder: str, method: str) -> None:
    """Train one method as one of `world` processes; rank 0 saves the test scores."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    import methods
    from benchmarks.checkpoint import Checkpoints
    from benchmarks.grid import load
    from benchmarks.plan import resolve
    from benchmarks.probe import PseudoLabelProbe
    from benchmarks.runner import Execution, Options, summariser, task_of
    from benchmarks.trainer import Schedule, Trainer
    from benchmarks.workspace import Workspace

    workspace = Workspace(Path(folder) / "data", Path(folder) / "runs")
    jobs = resolve(load(grid), workspace, progress=lambda title: lambda d, n: None, workers=1)
    (job,) = [job for job in jobs if job.spec.method == method]
    execution = Execution(workspace, "fp32", Options())
    # Without cpu=True accelerate would report one process on both ranks and test nothing.
    assert execution.accelerator.num_processes == world
    pool = job.split.unlabelled
    built = methods.create(
        method, backbone=execution._backbone(job), task=task_of(job, len(pool)), **job.spec.hyper
    )
    hidden = torch.from_numpy(job.prepared.dataset.train.labels[pool])
    trainer = Trainer(
        built, execution._data(job, pool), job.cell.recipe,
        Schedule.semi_supervised(job.cell.recipe), 1, accelerator=execution.accelerator,
        checkpoints=Checkpoints(Path(folder) / f"checkpoints-{world}", 1e9),
        probe=PseudoLabelProbe(hidden, execution.accelerator),
        summarise=summariser(job), summarise_val=summariser(job),
    )  # fmt: skip
    outcome = trainer.fit()
    state = {name: value for name, value in trainer.method.state_dict().items() if "mask" in name}
    quality = trainer.probe.summary() if trainer.probe else None
    if rank == 0:
        torch.save((outcome.scores, state, quality), Path(folder) / f"out-{world}.pt")
    else:
        assert outcome.scores is not None  # every process ends with all scores
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["fixmatch", "csaa"])
def test_two_processes_end_where_one_does(tmp_path, voc_root, method):
    grid = tmp_path / "grid.toml"
    # 45 unlabelled images: neither the batches nor the pool divide by two.
    grid.write_text(grid_text(voc_root, f'["{method}"]', batch_labelled=5, batch_unlabelled=13))
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(train, args=(world, port, str(grid), str(tmp_path), method), nprocs=world)
    (one, masks_one, quality_one), (two, masks_two, quality_two) = (
        torch.load(tmp_path / f"out-{world}.pt", weights_only=False) for world in (1, 2)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    assert one.std() > 0.01
    for name, mask in masks_one.items():
        assert torch.equal(mask, masks_two[name]), name
    assert quality_one == quality_two
