"""Variables of the environment that sbatch would take for options."""

from __future__ import annotations

import pytest

from methods.errors import UserError
from slurm.profile import Profile
from slurm.site import TAKEN, adopt


@pytest.mark.parametrize(("name", "field"), TAKEN.items())
def test_a_sites_variable_becomes_the_default_of_its_field(name, field):
    profile, said = adopt(Profile(), {name: "other", "HOME": "/x"})
    assert getattr(profile, field) == "other"
    assert len(said) == 1
    assert f"{name}=other" in said[0]
    assert field in said[0]
    flags = profile.flags(1, 1)
    assert "other" in {**flags, **flags["additional_parameters"]}.values(), "it reaches sbatch"


def test_the_profile_counts_and_says_so():
    profile, said = adopt(
        Profile(account="lab", qos="long"), {"SBATCH_ACCOUNT": "other", "SBATCH_QOS": "long"}
    )
    assert (profile.account, profile.qos) == ("lab", "long")
    assert said == ["SBATCH_ACCOUNT=other of the environment does not count: the profile has account = lab"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SBATCH_TIMELIMIT", "minutes"),
        ("SBATCH_GPUS", "gpus"),
        ("SBATCH_MEM_PER_NODE", "memory_gb"),
        ("SBATCH_EXPORT", r"\[extra\] export"),
        ("SBATCH_CLUSTERS", "SLURM_CLUSTERS"),
        ("SBATCH_OUTPUT", "sets --output itself"),
        ("SBATCH_MEM_PER_CPU", r"as mem-per-cpu below \[extra\]"),
        ("SBATCH_MEM_BIND", "mem-bind"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(name, words):
    with pytest.raises(UserError, match=words) as caught:
        adopt(Profile(), {name: "5"})
    assert f"{name}=5" in str(caught.value)
    assert f"unset {name}" in str(caught.value)


def test_what_slurm_sets_inside_a_job_is_no_wish():
    inside = {"SLURM_JOB_ID": "7", "SBATCH_MEM_BIND": "local", "SBATCH_CPU_BIND_TYPE": "mask"}
    assert adopt(Profile(), inside) == (Profile(), [])
    assert adopt(Profile(), {"SBATCH_ACCOUNT": "", "SBATCH_DEBUG": "1"}) == (Profile(), [])
