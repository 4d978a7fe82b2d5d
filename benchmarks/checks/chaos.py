"""Kills a grid's processes at random moments and checks whether anything was lost.

    python -m benchmarks.checks.chaos --kills 100 --stops 20 --json

A small grid is run undisturbed, and then by two launchers that compete for the same store, while every
few seconds a launcher, all processes of a worker, or one of them is killed (SIGKILL), or stopped for longer
than its lease and then woken up (SIGSTOP, SIGCONT). Launchers that have ended are started again. When every
run is finished and kills or stops are left, a new store is filled. Counted at the end of each store:

* lost: results that were seen and are gone or changed, and runs that are not finished;
* torn: results that cannot be read, or whose predictions are not those they were written with;
* differing: predictions whose bytes are not those of the undisturbed run;
* failed: runs that were recorded as failed in between, as if they were at fault; a process group that
  hangs is one of them.

All four have to be 0; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.checks.small_grid import command, write_grid, write_scenes
from results import predictions
from results.errors import StoreError
from results.lease import LEASE_SECONDS
from results.store import RunStore

LAUNCHERS = 2
LEASE = 6.0
"""Time to live of the leases, seconds; stops take half of it to twice as long."""
VICTIMS = ("launcher", "worker", "process")
METHODS = ("linear_probe", "supervised", "fixmatch", "csaa")


@dataclass
class Seen:
    """What was counted over all stores.

    Attributes:
        kills: kills by kind of victim.
        stops: stops by kind of victim.
        runs: finished runs that were checked.
        stores: stores that were filled.
        lost: see the module.
        torn: see the module.
        differing: see the module.
        failed: see the module.
        problems: one line for each problem.
    """

    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    stores: int = 0
    lost: int = 0
    torn: int = 0
    differing: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)


class Witness:
    """Records the results and failures of a store when they appear.

    Args:
        runs: the folder of runs.

    Attributes:
        results: SHA-256 of each result as it was first seen, by the run's directory.
        failures: files of recorded failures.
    """

    def __init__(self, runs: Path) -> None:
        self.runs, self.store = runs, RunStore(runs / "store")
        self.results: dict[Path, str] = {}
        self.failures: set[Path] = set()

    def look(self) -> None:
        """Record what is new."""
        for place in self.store.scan():
            result = place / "result.json"
            if place not in self.results and result.exists():
                self.results[place] = _sha256(result)
            self.failures.update(place.glob("failure*.json"))


class Chaos:
    """One grid, its undisturbed results, and the stores that are disturbed.

    Args:
        folder: where everything goes.
        processes: processes that train each run together.
        seeds: seeds of the grid: four runs each.
        pace: mean seconds between kills and stops.
        draw: random numbers for victims and moments.
    """

    def __init__(self, folder: Path, processes: int, seeds: int, pace: float, draw: random.Random) -> None:
        self.folder, self.processes, self.pace, self.draw = folder, processes, pace, draw
        self.grid = write_grid(folder / "chaos.toml", write_scenes(folder), seeds, METHODS)
        self.seen = Seen()
        # Two launchers at once: with more threads they would fight for the cores.
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", LEASE_SECONDS: str(LEASE)}
        self.expected = self._calm()

    def _command(self, runs: Path) -> list[str]:
        argv = command(self.grid, self.folder / "data", runs, self.processes)
        return [*argv, "--checkpoint-seconds", "1", "--hang-seconds", "60"]

    def _calm(self) -> dict[str, bytes]:
        runs = self.folder / "calm"
        subprocess.run(self._command(runs), check=True, stdout=subprocess.DEVNULL, env=self.environment)
        found = {}
        for place in RunStore(runs / "store").scan():
            found[str(place.relative_to(runs))] = (place / "predictions.npz").read_bytes()
        return found

    def disturb(self, kills: int, stops: int) -> None:
        """Run the grid in a new store with at most this many kills and stops, and check the store."""
        witness = Witness(self.folder / f"rough-{self.seen.stores}")
        launchers: list[subprocess.Popen[bytes]] = []
        left = Counter({"kill": kills, "stop": stops})
        moment = time.monotonic() + self._pause()
        asleep: list[tuple[float, list[psutil.Process]]] = []
        with open(self.folder / "launchers.log", "ab") as log:
            while True:
                witness.look()
                unfinished = len(witness.results) < len(self.expected)
                launchers = [process for process in launchers if process.poll() is None]
                if not unfinished and not launchers:
                    break
                while unfinished and len(launchers) < LAUNCHERS:
                    launchers.append(
                        subprocess.Popen(
                            self._command(witness.runs),
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            env=self.environment,
                        )
                    )
                if left.total() and launchers and time.monotonic() >= moment:
                    what = self.draw.choices(list(left), list(left.values()))[0]
                    kind, victims = self._victims(launchers)
                    if what == "kill" and _send(victims, signal.SIGKILL):
                        self.seen.kills[kind] += 1
                        left[what] -= 1
                    elif what == "stop" and _send(victims, signal.SIGSTOP):
                        asleep.append((time.monotonic() + self.draw.uniform(0.5, 2) * LEASE, victims))
                        self.seen.stops[kind] += 1
                        left[what] -= 1
                    moment = time.monotonic() + self._pause()
                asleep = _wake(asleep)
                time.sleep(0.1)
        self.check(witness)

    def _pause(self) -> float:
        return self.draw.expovariate(1 / self.pace)

    def _victims(self, launchers: list[subprocess.Popen[bytes]]) -> tuple[str, list[psutil.Process]]:
        """What is disturbed next: its kind, and the processes; none where there are none of the kind."""
        kind = self.draw.choice(VICTIMS)
        try:
            launcher = psutil.Process(self.draw.choice(launchers).pid)
            if kind == "launcher":
                return kind, [launcher]
            victims = launcher.children()
        except psutil.NoSuchProcess:
            return kind, []
        if kind == "process" and victims:
            victims = [self.draw.choice(victims)]
        return kind, victims

    def check(self, witness: Witness) -> None:
        """Compare a store with what the witness has seen of it and with the undisturbed results."""
        seen, store = self.seen, witness.store
        for place, digest in witness.results.items():
            if not (place / "result.json").exists() or _sha256(place / "result.json") != digest:
                self._problem("lost", f"{place}: its result is gone or was written again")
        for name, expected in self.expected.items():
            place = witness.runs / name
            try:
                strange = predictions.strange(store.predictions(place), store.load(place))
            except (StoreError, OSError, ValueError, KeyError) as error:
                gone = not (place / "result.json").exists()
                self._problem("lost" if gone else "torn", f"{place}: {error}")
                continue
            seen.runs += 1
            if strange:
                self._problem("torn", f"{place}: {'; '.join(strange)}")
            elif (place / "predictions.npz").read_bytes() != expected:
                self._problem("differing", f"{place}: other predictions than without kills")
        for file in sorted(witness.failures):
            self._problem("failed", f"{file}: {_message(file)}")
        seen.stores += 1

    def _problem(self, kind: str, line: str) -> None:
        setattr(self.seen, kind, getattr(self.seen, kind) + 1)
        self.seen.problems.append(f"{kind}: {line}")


def _send(victims: list[psutil.Process], number: signal.Signals) -> bool:
    """Send a signal to processes; whether one of them was there."""
    reached = False
    for victim in victims:
        try:
            victim.send_signal(number)  # psutil makes sure that the number is still this process's
            reached = True
        except psutil.NoSuchProcess:
            continue
    return reached


def _wake(asleep: list[tuple[float, list[psutil.Process]]]) -> list[tuple[float, list[psutil.Process]]]:
    """Wake those whose time has come, and return the others."""
    now = time.monotonic()
    for when, victims in asleep:
        if when <= now:
            _send(victims, signal.SIGCONT)
    return [entry for entry in asleep if entry[0] > now]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _message(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("message", "")
    except (OSError, ValueError):
        return "put aside or gone by now"


def main() -> int:
    """Entry point of `python -m benchmarks.checks.chaos`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kills (default 20)")
    parser.add_argument("--stops", type=int, default=0, metavar="N", help="stops (default 0)")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        metavar="N",
        help="processes that train each run together (default 2)",
    )
    parser.add_argument(
        "--seeds", type=int, default=4, metavar="N", help="seeds of the grid, four runs each (default 4)"
    )
    parser.add_argument(
        "--pace",
        type=float,
        default=6.0,
        metavar="S",
        help="mean seconds between kills and stops (default 6)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of victims and moments")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ssmll-chaos-") as folder:
        chaos = Chaos(Path(folder), args.processes, args.seeds, args.pace, random.Random(args.seed))
        seen = chaos.seen
        while True:
            chaos.disturb(args.kills - seen.kills.total(), args.stops - seen.stops.total())
            print(
                f"store {seen.stores}: {seen.kills.total()} kills, {seen.stops.total()} stops, "
                f"{seen.runs} runs checked, "
                f"{len(seen.problems)} problems",
                file=sys.stderr,
                flush=True,
            )
            done = seen.kills.total() >= args.kills and seen.stops.total() >= args.stops
            if done or seen.problems:
                break
    for line in seen.problems:
        print(line, file=sys.stderr)
    report = {
        "kills": seen.kills.total(),
        "stops": seen.stops.total(),
        "lost": seen.lost,
        "torn": seen.torn,
        "differing": seen.differing,
        "failed": seen.failed,
        "runs": seen.runs,
        "stores": seen.stores,
        "by": dict(sorted(seen.kills.items())),
        "stops_by": dict(sorted(seen.stops.items())),
        "processes": args.processes,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))
    return 1 if seen.problems else 0


if __name__ == "__main__":
    sys.exit(main())
