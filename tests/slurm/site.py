"""A cluster made of commands that stand in for SLURM's."""

from __future__ import annotations

import platform
from pathlib import Path

from tests.slurm.fakes import Fakes

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits",
    "GresTypes": "gpu",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "PreemptMode": "REQUEUE",
    "PreemptParameters": "send_user_signal",
    "PreemptType": "preempt/partition_prio",
    "SelectType": "select/cons_tres",
}
PARTITIONS = (
    "PartitionName=gpu Default=YES GraceTime=30 MaxTime=1-00:00:00 PreemptMode=REQUEUE State=UP "
    "TotalNodes=4\n"
    "PartitionName=off Default=NO GraceTime=0 MaxTime=00:30:00 PreemptMode=OFF State=DOWN "
    "TotalNodes=1\n"
    "PartitionName=short Default=NO GraceTime=0 MaxTime=30:00 PreemptMode=CANCEL State=UP\n"
)
PACKAGES = {"python": platform.python_version(), "submitit": "0", "absent-package": "1"}


class Site(Fakes):
    """A cluster that has everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("squeue", "scancel", "srun", "sinfo", "sacct"):
            self.add(name)
        self.add("sbatch", '[[ "$1" == --version ]] && echo "slurm 22.05.8"; exit 0')
        self.add("sacctmgr", "echo 'lab|normal,long'; echo 'other|normal'")
        self.configure()

    def configure(self, partitions: str = PARTITIONS, **changes: str) -> None:
        """Another answer of scontrol."""
        (self.folder / "config").write_text(
            "".join(f"{key:<24}= {value}\n" for key, value in (CONFIG | changes).items())
        )
        (self.folder / "partitions").write_text(partitions)
        self.add(
            "scontrol",
            f"""case "$1 $2" in
"ping ") echo "Slurmctld(primary) at head is UP" ;;
"show config") cat {self.folder}/config ;;
"show partition") cat {self.folder}/partitions ;;
esac""",
        )
