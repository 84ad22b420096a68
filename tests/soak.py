"""Kill a training run at random moments until it is done, and compare it with an undisturbed one.

The disturbed run also uses an index of the files, or shards, which the undisturbed one does not.

python -m tests.soak --kills 30
python -m tests.soak --kills 30 --shards
"""

import argparse
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seresnext_jax.checkpoint.store import step_folders
from tests.programs import DIGITS, arrays, done, finish, records, shared, start, tiny

STOPPED = 75
DEMO = ("--epochs", "20", "--optim.warmup", "2", "--prof", "-1", "--checkpoint.every-steps", "10")
"""The digits demo, whole, which also saves within its epochs."""
WITH_INDEX = """
import train
from seresnext_jax.data import index
index.MIN_IMAGES = index.SETTLED = 0  # the digits are few, and written just now
train.run(train.main)
"""
OPTIMISED = {"XLA_FLAGS": ""}
"""The environment of a program that is compiled as a user's."""


@dataclass
class Outcome:
    """What a soak did and found."""

    starts: int = 0
    kills: int = 0
    """Starts ended by SIGKILL when there was a checkpoint to go on from."""
    early_kills: int = 0
    """Starts ended by SIGKILL before the first checkpoint."""
    stops: int = 0
    """Starts ended by SIGTERM."""
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    runs: int = 0
    """Runs that came to their end."""
    differences: tuple[str, ...] = ()
    """Arrays and report records of any of them that are not those of the undisturbed run."""

    def add_run(self, calm: Path, rough: Path) -> None:
        """Compare a run that came to its end."""
        self.runs += 1
        self.differences += _differences(calm, rough)


def soak(
    calm: Path,
    rough: Path,
    command: Sequence[str],
    *,
    kills: int,
    seed: int,
    longest: float,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Disturb a run until it had `kills` kills with a checkpoint, let it finish, and compare.

    A run that finishes before is compared too, and begun again.

    Args:
      calm: the workspace of an undisturbed run with the same options.
      rough: the workspace of the disturbed one.
      command: starts or continues the disturbed run.
      seed: decides signals and moments, as far as the machine's speed lets it.
      longest: seconds; a signal comes at most so long after a start, later after early kills.
      env: further variables of the program's environment.
    """
    outcome = Outcome()
    generator = random.Random(seed)
    began = time.monotonic()
    while not (outcome.kills >= kills and _finished(rough)):
        if _finished(rough):  # too early: run it once more, with the kills that are left
            outcome.add_run(calm, rough)
            shutil.rmtree(rough)
        disturbing = outcome.kills < kills
        number = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        moment = generator.uniform(0.1, 1.0) * longest
        status = _start_once(command, env, number, moment if disturbing else None)
        outcome.starts += 1
        outcome.statuses[status] += 1
        if status == -signal.SIGKILL:
            saved = bool(step_folders(rough / "checkpoints"))
            outcome.kills += saved
            outcome.early_kills += not saved
            longest *= 1 if saved else 1.3  # on a slow machine a run must get anywhere at all
        elif status:
            outcome.stops += 1
    outcome.add_run(calm, rough)
    outcome.seconds = time.monotonic() - began
    return outcome


def _start_once(
    command: Sequence[str],
    env: Mapping[str, str] | None,
    number: signal.Signals,
    moment: float | None,
) -> int:
    """Start the run and send it `number` after `moment` seconds; None: let it end by itself.

    Returns:
      its exit status.
    """
    process = start(command, env=env)
    if moment is not None:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    result = finish(process)
    if result.returncode not in (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM):
        raise RuntimeError(f"status {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.returncode


def _finished(workspace: Path) -> bool:
    return (workspace / "report.png").exists()


def _differences(calm: Path, rough: Path) -> tuple[str, ...]:
    a, b = arrays(calm), arrays(rough)
    found = [n for n in sorted(a.keys() | b.keys()) if n not in a or n not in b]
    found += [n for n in sorted(a.keys() & b.keys()) if a[n].tobytes() != b[n].tobytes()]
    mine, theirs = records(calm), records(rough)
    found += [str(record) for record in mine if record not in theirs]
    found += [str(record) for record in theirs if record not in mine]
    return tuple(found) + (("the number of records",) if len(mine) != len(theirs) else ())


def main() -> int:
    """Soak the digits demo and print the figures; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiled, calm, rough = (Path(folder) / name for name in ("compiled", "calm", "rough"))
        _, *command = tiny(rough, *DEMO, "--resume", "auto", config=DIGITS)
        command += ["--data.index", f"{folder}/index"]
        if options.shards:
            data = shared() / "digits"
            done(["pack_data.py", "--data.root", str(data), "--out", f"{folder}/shards"])
            command += ["--data.root", f"{folder}/shards"]
        done(tiny(compiled, *DEMO, "--run-epochs", "1", config=DIGITS), env=OPTIMISED)
        began = time.monotonic()
        done(tiny(calm, *DEMO, config=DIGITS), env=OPTIMISED)
        calm_seconds = time.monotonic() - began
        outcome = soak(
            calm,
            rough,
            ["-c", WITH_INDEX, *command],
            kills=options.kills,
            seed=options.seed,
            longest=calm_seconds / 4,  # a start takes half of that: many kills fall into one run
            env=OPTIMISED,
        )
    print(f"kills         {outcome.kills}, and {outcome.early_kills} before the first checkpoint")
    print(f"stops         {outcome.stops}")
    print(f"starts        {outcome.starts} (exit statuses {dict(outcome.statuses)})")
    print(f"runs          {outcome.runs}, each compared")
    print(f"undisturbed   {calm_seconds:.0f} s")
    print(f"disturbed     {outcome.seconds:.0f} s")
    print(f"differences   {len(outcome.differences)}")
    for line in outcome.differences:
        print(f"  {line}")
    return bool(outcome.differences)


if __name__ == "__main__":
    raise SystemExit(main())
