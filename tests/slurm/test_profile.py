"""Profiles: bad input gives one clear line, good input reaches sbatch."""

from __future__ import annotations

import dataclasses

import pytest

from methods.errors import UserError
from slurm import profile
from slurm.profile import Profile
from tests.slurm.fakes import Fakes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partitoin = "gpu"', ("no field 'partitoin'", "did you mean 'partition'")),
        ("gpus = 1.5", ("gpus", "1.5", "whole number")),
        ("gpus = true", ("gpus", "True", "whole number")),
        ("use_srun = 1", ("use_srun", "true or false")),
        ("partition = 3", ("partition", "a string")),
        ('setup = "module load cuda"', ("setup", "list of strings")),
        ("srun_args = [1]", ("srun_args", "list of strings")),
        ("extra = 3", ("extra", "table")),
        ('[extra]\narray = "0-9"', ("'array'", "set by the harness")),
        ('[extra]\nntasks_per_node = "2"', ("'ntasks_per_node'", "set by the harness")),
        ('[extra]\n--mail-type = "END"', ("'--mail-type'", "without dashes")),
        ('[extra]\nmail-type = ["END"]', ("mail-type", "no flag's value")),
        ("[extra]\nwait = true", ("'wait'", "set by the harness")),
        ('srun_args = ["--export=NONE"]', ("srun_args", "--export=NONE", "take from the tasks")),
        ("minutes = 10", ("minutes", "at least 20", "preemption")),
        ("gpus = -1", ("gpus", "at least 0")),
        ("cpus = 0", ("cpus", "at least 1")),
        ("parallel = 0", ("parallel", "at least 1")),
        ('gpu_flag = "gpus"', ("gpu_flag", "gpus-per-node")),
        ("minutes = 30\nsignal_seconds = 1800", ("signal_seconds", "30 min")),
        ("gpus = ", ("Invalid value",)),
    ],
)
def test_bad_input_gives_one_line(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        profile.load(str(path))
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    for word in words:
        assert word in told


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        profile.load(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="directory"):
        profile.load(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"')
    with pytest.raises(UserError, match="decode"):
        profile.load(str(tmp_path / "latin.toml"))
    with pytest.raises(UserError, match=r"no profile 'cpuu'; did you mean 'cpu'.*ending in .toml"):
        profile.load("cpuu")


def test_where_a_profile_comes_from(monkeypatch, tmp_path):
    monkeypatch.delenv(profile.VARIABLE, raising=False)
    assert profile.load(None) == Profile()
    (tmp_path / "mine.toml").write_text("gpus = 0\nsetup = ['a', 'b']")
    monkeypatch.setenv(profile.VARIABLE, str(tmp_path / "mine.toml"))
    assert profile.load(None) == Profile(gpus=0, setup=("a", "b"))
    assert profile.load("cpu").minutes == 60, "the name counts more than the variable"


def test_profiles_that_come_along():
    assert {"cpu", "example"} <= set(profile.available())
    for name in profile.available():
        profile.load(name).flags(1, 1)
    named = (profile.PROFILES / "example.toml").read_text()
    for field in dataclasses.fields(Profile):
        assert f"{field.name} " in named or f"[{field.name}]" in named, "the example shows all"


def test_flags_leave_out_what_is_not_asked_for():
    flags = Profile(gpus=0).flags(2, 3)
    assert flags["nodes"] == 2
    assert flags["ntasks_per_node"] == 3
    assert flags["wckey"] is None, "submitit's own would be refused by some clusters"
    assert not {"partition", "account", "qos", "constraint", "exclude"} & set(flags)
    assert flags["additional_parameters"] == {"requeue": True}


def test_flags_count_per_node():
    asked = Profile(
        gpus=2,
        gpu_type="a100",
        memory_gb=10,
        partition="gpu",
        reservation="r",
        signal_seconds=90,
        extra={"mail-type": "END", "exclusive": False},
    )
    flags = asked.flags(2, 4)
    assert flags["partition"] == "gpu"
    assert flags["signal_delay_s"] == 90
    assert flags["additional_parameters"] == {
        "requeue": True,
        "reservation": "r",
        "mem": "40G",
        "gpus-per-node": "a100:8",
        "mail-type": "END",
    }
    gres = dataclasses.replace(asked, gpu_flag="gres").flags(1, 1)["additional_parameters"]
    assert gres["gres"] == "gpu:a100:2"
    assert "gpus-per-node" not in gres


def test_what_submitit_writes_for_sbatch(tmp_path, monkeypatch):
    """The flags are names that submitit knows, and reach the script as sbatch reads them."""
    import submitit

    fakes = Fakes(tmp_path / "bin")
    fakes.add("srun")  # without one submitit refuses to write anything
    fakes.use(monkeypatch)
    executor = submitit.SlurmExecutor(str(tmp_path), python="/opt/python")
    asked = Profile(
        gpus=1,
        minutes=30,
        constraint="a100|h100",
        setup=("module load cuda",),
        srun_args=("--cpu-bind=none",),
        extra={"exclusive": True},
    )
    executor.update_parameters(**asked.flags(1, 2))
    lines = executor._make_submission_file_text("work", "id").splitlines()
    for line in (
        "#SBATCH --time=30",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --constraint='a100|h100'",
        "#SBATCH --exclusive",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --open-mode=append",
        "module load cuda",
    ):
        assert line in lines
    assert not [line for line in lines if "wckey" in line or "--error" in line]
    assert any(line.startswith("srun ") and "--cpu-bind=none" in line for line in lines)


@pytest.mark.parametrize(
    ("processes", "nodes", "expected"),
    [(1, 0, (1, 1)), (8, 0, (1, 8)), (12, 0, (2, 6)), (9, 0, (3, 3)), (8, 4, (4, 2))],
)
def test_shape(processes, nodes, expected):
    assert Profile(processes_per_node=8).shape(processes, nodes) == expected


@pytest.mark.parametrize(
    ("processes", "nodes", "words"),
    [
        (5, 2, "5 processes cannot be spread evenly over 2 nodes"),
        (2, 4, "spread evenly over 4"),
        (8, 1, r"allows 4 on a node \(processes_per_node\)"),
    ],
)
def test_shapes_that_do_not_fit(processes, nodes, words):
    with pytest.raises(UserError, match=words):
        Profile(processes_per_node=4).shape(processes, nodes)


def test_several_processes_need_srun():
    assert Profile(use_srun=False).shape(1, 0) == (1, 1)
    with pytest.raises(UserError, match="use_srun"):
        Profile(use_srun=False).shape(2, 0)
