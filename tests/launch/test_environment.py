"""Variables left over in an environment: dropped, cut or refused; and who waits for a group obeys signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.launch import environment
from benchmarks.launch.local import Local
from benchmarks.provenance import cores
from benchmarks.run import main
from benchmarks.training.accelerate_variables import check
from methods.errors import UserError
from slurm import protocol, task
from tests.conftest import ROOT
from tests.launch.conftest import assert_one_process

LEFT = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "n7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "PMI_SIZE": "4",
    "OMPI_COMM_WORLD_SIZE": "4",
}


@pytest.fixture
def left(monkeypatch) -> None:
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)


def test_a_job_of_one_task_gets_no_rank(left, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not LEFT.keys() & task.environment().keys()


def test_a_task_of_several_gets_its_own_only(left, monkeypatch):
    monkeypatch.setattr(task, "first_node", lambda: "10.0.0.1")
    for name, value in {"PROCID": "0", "LOCALID": "0", "NTASKS": "4", "JOB_ID": "5", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = task.environment()
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "4", "10.0.0.1")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in found, "rank 0 would wait for a server that nobody starts"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_local_worker_gets_its_own_rank_only(left, tmp_path, processes):
    found = environment.of_worker(
        0, processes - 1, processes=processes, threads=1, gpus=0, meeting=tmp_path / "m"
    )
    assert "MASTER_ADDR" not in found
    assert found.get("WORLD_SIZE") == (None if processes == 1 else "2")
    assert found.get(protocol.RENDEZVOUS) == (None if processes == 1 else str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("cpus", "asked", "threads", "said"),
    [
        ("4", "64", "4", "OMP_NUM_THREADS=64"),
        ("4", "abc", "4", "OMP_NUM_THREADS=abc"),
        ("4", "0", "4", "OMP_NUM_THREADS=0"),
        ("4", "2", "2", ""),
        ("4", "", "4", ""),
        ("", "64", "64", ""),
    ],
)
def test_threads_of_a_task_are_its_cpus_at_most(monkeypatch, capsys, cpus, asked, threads, said):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", cpus)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert task.environment()["OMP_NUM_THREADS"] == threads
    out = capsys.readouterr().out
    assert said in out
    assert bool(said) == bool(out)


@pytest.mark.parametrize(
    ("asked", "threads", "said"),
    [
        ("100000", cores(), "more than the cores"),
        ("x", None, "no number"),
        ("1", 1, ""),
        ("1,2", 1, ""),
        ("", None, ""),
    ],
)
def test_threads_of_a_user_are_the_cores_at_most(monkeypatch, asked, threads, said):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    lines: list[str] = []
    assert environment.threads_of_user(lines.append) == threads
    assert said in "".join(lines)
    assert len(lines) == bool(said)
    lines.clear()
    local = Local.default(1, 1, 30.0, 600.0, report=lines.append)
    assert 1 <= local.threads <= cores()
    assert len(lines) == bool(said)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "RANK and MASTER_ADDR and MASTER_PORT of torchrun or srun are not set; unset WORLD",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT of torchrun or srun are not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number; unset WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "at least 1 process"),
        (
            LEFT | {"RANK": "2"},
            "RANK=2 and WORLD_SIZE=2 in the environment do not agree; unset RANK LOCAL_RANK",
        ),
        (LEFT | {"RANK": "x"}, "RANK='x' is not a number"),
    ],
)
def test_what_cannot_be_a_group_is_refused_at_once(monkeypatch, capsys, tmp_path, variables, message):
    for name in protocol.GROUP:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--grid", "smoke", "--data", str(tmp_path / "d"), "--runs", str(tmp_path / "r")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def test_an_mpi_shell_makes_no_group():
    """accelerate believes PMI_SIZE more than WORLD_SIZE."""
    left = {"PMI_SIZE": "4", "PMI_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "MASTER_ADDR": "n7"}
    assert_one_process(protocol.GROUP, left)


WAITING = """
import sys
from benchmarks.launch.worker import StopRequest
from benchmarks.training import group
group._REMINDER_SECONDS = 0.0
stop = StopRequest(None)
stop.listen()
try:
    group.Group.join(stop, lambda line: print(line, flush=True))
except KeyboardInterrupt:
    print("stopped", flush=True)
    sys.stdout.flush()
    import os
    os._exit(75)
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "rank", "by_file"),
    [(signal.SIGTERM, "0", False), (signal.SIGINT, "1", False), (signal.SIGUSR2, "0", True)],
)
def test_who_waits_for_a_group_says_so_and_obeys_signals(tmp_path, number, rank, by_file):
    place = (
        {protocol.RENDEZVOUS: str(tmp_path / "meeting")}
        if by_file
        else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    )
    env = {name: value for name, value in os.environ.items() if name not in protocol.GROUP}
    waits = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        env=env | {"RANK": rank, "WORLD_SIZE": "2"} | place,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert waits.stdout is not None
    line = waits.stdout.readline()
    assert f"rank {rank} of 2" in line
    assert "unset RANK WORLD_SIZE" in line
    assert next(iter(place.values())) in line
    started = time.monotonic()
    waits.send_signal(number)
    assert waits.wait(timeout=60) == 75
    assert time.monotonic() - started < 30  # not the ten minutes that a group is waited for
    assert waits.stdout.read() == "stopped\n"


def test_the_command_line_says_at_once_what_it_waits_for(tmp_path):
    """The left-over variables of issue 14; planning comes after the line."""
    env = {name: value for name, value in os.environ.items() if name not in protocol.GROUP}
    env |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = ["--grid", "nonexistent", "--data", str(tmp_path / "d"), "--runs", str(tmp_path / "r")]
    script = Path(ROOT) / "benchmarks" / "run.py"
    done = subprocess.run(
        [sys.executable, script, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(
        "rank 0 of 2 (RANK and WORLD_SIZE of the environment): waits for the others at 127"
    )
    assert "nonexistent" in second


# What `accelerate launch` sets by itself, with `--cpu` and with a configuration file that asks for nothing.
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_CPU_AFFINITY": "1",
}


@pytest.mark.parametrize("strategy", [None, "ddp", "zero2"])
@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
def test_what_accelerate_launch_sets_by_itself_is_let_pass(strategy, precision):
    check(strategy, precision, True, PLAIN)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "ask for the precision 'fp32'"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "ask for the precision 'fp32'"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "would compile the model"),
        ("ACCELERATE_DYNAMO_MODE", "max-autotune", "would compile the model"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "would divide every loss"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "is the recipe's"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--strategy zero2"),
        ("ACCELERATE_USE_FSDP", "True", "ask for the strategy 'ddp'"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "ask for the strategy 'ddp'"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "may change a training"),
        ("ACCELERATE_USE_IPEX", "1", "may change a training"),
        ("ACCELERATE_DOWNCAST_BF16", "yes", "may change a training"),
        ("ACCELERATE_FP8_FORMAT", "E4M3", "8 bits"),
        ("ACCELERATE_USE_CPU", "true", "would leave the GPU unused"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", "another device"),
        ("ACCELERATE_OF_A_LATER_VERSION", "on", "may change a training"),
        ("NVIDIA_TF32_OVERRIDE", "1", "precision of every product"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "precision of every product"),
    ],
)
def test_what_would_change_a_training_is_refused_by_name(name, value, words):
    with pytest.raises(UserError, match=words) as caught:
        check("ddp", "fp32", True, PLAIN | {name: value})
    assert str(caught.value).startswith(name)
    assert "unset" in str(caught.value)


def test_what_agrees_with_the_runs_is_let_pass():
    check("zero2", "bf16", True, {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_DEEPSPEED": "true"})
    check("zero2", "fp32", True, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
    check("ddp", "fp32", False, {"ACCELERATE_USE_CPU": "true"})
    with pytest.raises(UserError, match="ZERO_STAGE=3"):
        check("zero2", "fp32", True, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})
    with pytest.raises(UserError, match="OFFLOAD_PARAM_DEVICE=cpu"):
        check("zero2", "fp32", True, {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"})


def test_every_variable_of_accelerate_s_launcher_is_known_to_be_refused_or_harmless():
    """The installed version's own launcher: each variable that it sets is refused at some value."""
    import re

    import accelerate.utils.launch as launch

    source = Path(launch.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'current_env\["(ACCELERATE_\w+)"\]', source))
    assert len(names) > 15
    let_pass = set()
    for name in names:
        try:
            check("ddp", "fp32", True, {name: "something"})
        except UserError:
            continue
        let_pass.add(name)
    assert let_pass <= {"ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"}
