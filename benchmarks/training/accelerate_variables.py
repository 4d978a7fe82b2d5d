"""Variables of the environment that would decide about a training in our place.

accelerate and torch read them in every process. `accelerate launch` sets them from its options and from its
configuration file (`accelerate config` writes ~/.cache/huggingface/accelerate/default_config.yaml):
precision, compilation, accumulation, DeepSpeed, FSDP, Megatron-LM, parallelism. A run's identity knows
nothing of them, so what is not neutral is refused by name. The lists are from the sources of accelerate 1.15
(utils/launch.py, state.py, accelerator.py, utils/dataclasses.py). This module needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from methods.errors import UserError

PREFIX = "ACCELERATE_"
HARMLESS = frozenset(
    PREFIX + name
    for name in (
        "BYPASS_DEVICE_MAP",
        "CPU_AFFINITY",
        "DEBUG_MODE",
        "DEBUG_RDV_FILE",
        "DISABLE_RICH",
        "ENABLE_RICH",
        "INIT_INCLUDE_BUFFERS",
        "LOG_LEVEL",
        "NUM_PROCESSES",
    )
)
"""What accelerate reads for messages, placement of processes, and loading of models that are not ours."""
NEUTRAL = frozenset({"", "0", "n", "no", "none", "f", "false", "off"})
_MORE_NEUTRAL = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": {"1"},
    "ACCELERATE_GRADIENT_CLIPPING": {"auto"},
    "ACCELERATE_DYNAMO_MODE": {"default"},
}
_WHY = (
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "would divide every loss"),
    ("ACCELERATE_GRADIENT_CLIPPING", "is the recipe's: state it there"),
    ("ACCELERATE_DYNAMO_", "would compile the model, and with it take TF32: other numbers"),
    ("ACCELERATE_FP8_", "would train in 8 bits"),
    ("ACCELERATE_USE_CPU", "would leave the GPU unused"),
    ("ACCELERATE_TORCH_DEVICE", "would choose another device"),
    ("ACCELERATE_", "may change a training, and no result would say so"),
    ("NVIDIA_TF32_OVERRIDE", "would change the precision of every product"),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "would change the precision of every product"),
)
_OTHERS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_STRATEGIES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
_ON_GPU = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", *_OTHERS)


def check(
    strategy: str | None = None,
    precision: str | None = None,
    gpu: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Refuse variables that ask for another training than the runs do.

    Args:
        strategy: how a step is spread over processes, such as "ddp"; None where the runs differ in it.
        precision: of the runs, such as "bf16"; None where they differ in it.
        gpu: whether this process trains on a GPU; None where that is not known.
        environ: variables; None for those of this process.

    Raises:
        UserError: names the variable, and what to do.
    """
    environ = os.environ if environ is None else environ
    for name, value in sorted(environ.items()):
        if not (name.startswith(PREFIX) or name in _OTHERS) or name in HARMLESS:
            continue
        asked = value.strip().lower()
        if asked in NEUTRAL or asked in _MORE_NEUTRAL.get(name, ()):
            continue
        if name == "ACCELERATE_MIXED_PRECISION":
            if precision is not None and asked != precision:
                raise UserError(
                    f"{name}={value}, but the runs ask for the precision {precision!r}: state it in the "
                    "recipe, and unset the variable (or say mixed_precision: 'no' to `accelerate config`)"
                )
        elif name in _STRATEGIES:
            _check_strategy(name, strategy)
        elif not _decides_nothing(name, asked, strategy, gpu):
            raise UserError(
                f"{name}={value} {next(why for start, why in _WHY if name.startswith(start))}; unset it, or "
                "start without `accelerate launch` (--processes N, torchrun)"
            )


def _decides_nothing(name: str, asked: str, strategy: str | None, gpu: bool | None) -> bool:
    if name in _ON_GPU:
        return not gpu
    if name == "ACCELERATE_DEEPSPEED_ZERO_STAGE" and strategy == f"zero{asked}":
        return True
    return name.startswith("ACCELERATE_DEEPSPEED_") and strategy is None


def _check_strategy(name: str, strategy: str | None) -> None:
    known = name == "ACCELERATE_USE_DEEPSPEED"
    if known and (strategy is None or strategy.startswith("zero")):
        return
    asked = f"the strategy {strategy!r}" if strategy else "a strategy of this harness"
    raise UserError(
        f"{name} is set, but the runs ask for {asked}; unset it"
        + (", or ask for 'zero2' (--strategy zero2)" if known else "")
    )
