"""How a step is spread over processes: DDP, or DeepSpeed's ZeRO stage 1 or 2, through accelerate.

With DDP every rank holds the whole optimiser state; with ZeRO each holds a share of it. Gradients
are averaged over ranks in both, so the trainer is the same. Everything that DeepSpeed would choose
by itself ("auto") is stated: micro-batch, accumulation, clipping (accelerate's "auto" is 1.0) and
precision. bf16 is torch's autocast over float32 weights, as with DDP.

ZeRO's own checkpoints are pickles and fit one number of processes only. Here each rank stores its
share as plain tensors, from which the shares of any other number of processes are cut.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from benchmarks.plan.recipe import check_strategy
from benchmarks.training import accelerate_variables
from benchmarks.training.group import Group
from methods.errors import UserError


def make(name: str, precision: str, group: Group) -> Strategy:
    """The strategy of a name, checked against the environment of this process.

    Raises:
        UserError: see `check_strategy`; DeepSpeed is not installed; variables of `accelerate
            launch` ask for something else.
    """
    check_strategy(name, precision, "strategy")
    accelerate_variables.check(name, precision, torch.cuda.is_available())
    found = Strategy(precision, group) if name == "ddp" else Zero(int(name[-1]), precision, group)
    if found.accelerator.num_processes != group.world:
        raise RuntimeError(
            f"accelerate counts {found.accelerator.num_processes} processes in a group of "
            f"{group.world}: each would train by itself"
        )
    return found


class Strategy:
    """DistributedDataParallel; with one process, nothing at all.

    Attributes:
        group: the processes that work together.
        accelerator: device, processes and precision, as accelerate sees them.
        sharded: whether each rank holds a part of the optimiser state only.
    """

    name = "ddp"
    sharded = False

    def __init__(self, precision: str, group: Group) -> None:
        self.precision, self.group = precision, group
        mixed = precision if precision in ("fp16", "bf16") else "no"
        # Every step uses every trained parameter (torch refuses another step otherwise), so the
        # graph of the first step holds for all, and need not be walked again.
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=True)
        # Without cpu=True accelerate counts one process per rank on machines without a GPU.
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=mixed, kwargs_handlers=[ddp]
        )
        scaler = self.accelerator.scaler
        self._fresh_scaler = scaler.state_dict() if scaler is not None else None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, views and scores: float64 for the precision "fp64", else float32."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def prepare(
        self, method: torch.nn.Module, optimizer: torch.optim.Optimizer, *, batch: int, clip: float
    ) -> tuple[Any, Any]:
        """Wrap the model and its optimiser.

        Args:
            method: the model.
            optimizer: its optimiser.
            batch: images of a step, over all processes.
            clip: largest gradient norm; 0 for no clipping.
        """
        self.accelerator.free_memory()  # it would keep every model that it has ever wrapped
        if self._fresh_scaler is not None:  # one scaler serves all runs of this process
            self.accelerator.scaler.load_state_dict(self._fresh_scaler)
        check_statistics(method, self.group.world)
        model, optimizer = self.accelerator.prepare(method, optimizer)
        if self.group.world > 1:
            # Buffers are the same on every rank without being sent at each step: methods derive
            # them from gathered scores. Checkpoints verify it.
            model.broadcast_buffers = False
        return model, optimizer

    def autocast(self) -> Any:
        """Context of a forward pass."""
        return self.accelerator.autocast()

    def clip(self, parameters: Any, norm: float) -> None:
        """Clip the gradients before a step."""
        self.accelerator.clip_grad_norm_(parameters, norm)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """This rank's part of the optimiser state, for a checkpoint: name to value."""
        return {"optimizer": optimizer.state_dict()}

    def load_optimizer(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Take what the ranks' `optimizer_state` gave, of any number of processes."""
        if "optimizer" not in state:
            raise UserError("the checkpoint was written with DeepSpeed; continue with that strategy")
        optimizer.load_state_dict(state["optimizer"])


class Zero(Strategy):
    """DeepSpeed ZeRO, stage 1 (optimiser state) or 2 (gradients too).

    Args:
        stage: 1 or 2.
        precision: "fp32" or "bf16".
        group: the processes that work together.
    """

    sharded = True

    def __init__(self, stage: int, precision: str, group: Group) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "DeepSpeed is not installed: pip install 'ssmll-bench[deepspeed]' "
                "(it needs a compiler), or use the strategy 'ddp'"
            )
        self.name, self.precision, self.group = f"zero{stage}", precision, group
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        # DeepSpeed is left out by accelerate, without a word, where these are not set.
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("LOCAL_RANK", "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        if not torch.distributed.is_initialized():  # alone: DeepSpeed wants a process group
            torch.distributed.init_process_group(
                "gloo" if on_cpu else "nccl",
                store=torch.distributed.HashStore(),
                rank=0,
                world_size=1,
            )
        from accelerate import DeepSpeedPlugin, InitProcessGroupKwargs

        self.config: dict[str, Any] = {
            "zero_optimization": {"stage": stage, "round_robin_gradients": False},
            "zero_allow_untested_optimizer": True,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
            "steps_per_print": 2**31,
        }
        self._plugin = DeepSpeedPlugin(hf_ds_config=self.config)
        handlers = [InitProcessGroupKwargs(backend="gloo")] if on_cpu else []
        self.accelerator = Accelerator(
            mixed_precision="no", deepspeed_plugin=self._plugin, kwargs_handlers=handlers
        )

    def prepare(
        self, method: torch.nn.Module, optimizer: torch.optim.Optimizer, *, batch: int, clip: float
    ) -> tuple[Any, Any]:
        """As `Strategy.prepare`; micro-batch and clipping go into DeepSpeed's configuration."""
        share = max(1, -(-batch // self.group.world))
        settings = self._plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = share
        settings["train_batch_size"] = share * self.group.world
        settings["gradient_clipping"] = float(clip)
        check_statistics(method, self.group.world)
        self.accelerator.free_memory()  # it would go on with the engine of the run before
        with _first_broadcast():
            return self.accelerator.prepare(method, optimizer)

    def autocast(self) -> Any:
        """Context of a forward pass: torch's autocast, because the engine holds float32 weights."""
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")

    def clip(self, parameters: Any, norm: float) -> None:
        """Nothing: the engine clips inside its step, by the norm given to `prepare`."""

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """This rank's share: one tensor for each group and quantity, and the groups' settings."""
        zero = optimizer.optimizer
        share: dict[str, Tensor] = {}
        for k, part in enumerate(zero.single_partition_of_fp32_groups):
            for name, value in zero.optimizer.state[part].items():
                share[f"{k}.{name}"] = torch.as_tensor(value)
        rank, world = self.group.rank, self.group.world
        found: dict[str, Any] = {f"share.{rank}-of-{world}": share}
        if rank == 0:
            found["groups"] = [_settings(group) for group in zero.optimizer.param_groups]
        return found

    def load_optimizer(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Cut this rank's share from those of all ranks that saved; the weights are loaded."""
        if "groups" not in state:
            raise UserError("the checkpoint was written with DDP; continue with strategy 'ddp'")
        zero = optimizer.optimizer
        zero.refresh_fp32_params()  # the shares of the weights, from the module's own
        rank, world = self.group.rank, self.group.world
        shares = _shares(state)
        for k, part in enumerate(zero.single_partition_of_fp32_groups):
            length = sum(value.numel() for value in zero.bit16_groups[k])
            entries: dict[str, Tensor] = {}
            for name, first in shares[0].items() if shares else ():
                group, quantity = name.split(".", 1)
                if int(group) != k:
                    continue
                if first.ndim == 0:  # a count of steps is the same in every share
                    entries[quantity] = first.cpu()
                    continue
                whole = torch.cat([share[name] for share in shares])[:length]
                entries[quantity] = cut(whole, part.numel(), rank, world).to(part.device)
            zero.optimizer.state[part] = entries
        for ours, saved in zip(zero.optimizer.param_groups, state["groups"], strict=True):
            ours.update(saved)


def check_statistics(method: torch.nn.Module, world: int) -> None:
    """Refuse batch statistics over the share of one process: they would depend on the number.

    Raises:
        UserError: a batch normalisation is trained with its own statistics by several processes.
    """
    method.train()
    if world > 1 and any(
        isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training for part in method.modules()
    ):
        raise UserError(
            f"batch normalisation with batch statistics (freeze_bn = false) would depend on the "
            f"{world} processes; use freeze_bn = true or one process"
        )


@contextmanager
def _first_broadcast() -> Iterator[None]:
    """Give the ranks rank 0's weights in our way while an engine is built.

    DeepSpeed (0.19) sends each parameter as a view of its bytes, which torch refuses for scalars
    and for convolutions in channels-last order.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    def broadcast(engine: Any) -> None:
        for value in engine.module.parameters():
            data = value.data.contiguous()
            torch.distributed.broadcast(data, 0)
            value.data.copy_(data)

    theirs = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = broadcast
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = theirs


def cut(whole: Tensor, length: int, rank: int, world: int) -> Tensor:
    """The share of one rank: (n,) values, padded with zeros to `world` shares of `length`."""
    padded = torch.zeros(length * world, dtype=whole.dtype, device=whole.device)
    padded[: len(whole)] = whole
    return padded[rank * length : (rank + 1) * length].clone()


def _shares(state: dict[str, Any]) -> list[dict[str, Tensor]]:
    names = [name for name in state if name.startswith("share.")]
    return [state[name] for name in sorted(names, key=lambda name: int(name[6:].split("-")[0]))]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a schedule changes in a group; tensors are its parameters."""
    return {
        name: value
        for name, value in group.items()
        if name != "params" and isinstance(value, bool | int | float | tuple | str | None)
    }
