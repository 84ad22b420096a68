"""doctor.py: what it prints, its JSON file and exit status, for a machine and for a run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import doctor
from seresnext_jax.config import Config, flatten
from seresnext_jax.errors import UserError
from seresnext_jax.health.finding import Finding
from tests.programs import ONE_BLOCK, run, shared


@pytest.fixture(autouse=True)
def settings_stay(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process is the tests', so nothing is set for JAX."""
    monkeypatch.setattr(doctor.runtime, "start", lambda config: None)
    yield


def test_a_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", str(tmp_path / "d.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "d.json").read_text())
    names = [finding["name"] for finding in found["findings"]]
    assert names[:3] == ["packages", "driver", "devices"] and names[-1] == "C++ compiler"
    assert sum(name.startswith("convolution on ") for name in names) == 8
    assert all(f"{name}: " in printed for name in names)
    assert "To check a run, too, add its --config and options." in printed
    assert found["environment"]["jax"]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", ONE_BLOCK, "--data.root", str(shared() / "digits"), "--batch-size", "16"]
    words += ["--workspace", str(tmp_path / "run"), "--json", str(tmp_path / "d.json")]
    assert doctor.main(words) == 0
    found = json.loads((tmp_path / "d.json").read_text())["findings"]
    assert [finding["name"] for finding in found[-4:]] == ["dataset", "reading", "disk", "memory"]
    assert all(finding["status"] == "ok" for finding in found[-4:]), found
    assert found[-1]["numbers"]["step_bytes"] > found[-2]["numbers"]["checkpoint_bytes"]
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_a_problem_is_the_exit_status_and_has_its_fix_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Finding("memory", "ok", "enough")
    monkeypatch.setattr(doctor, "check_memory", lambda *_: memory)
    monkeypatch.setitem(sys.modules, "seresnext_jax.data.backends.dali", None)
    words = ["--data.root", str(tmp_path), "--workspace", str(tmp_path)]
    assert doctor.main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "compiling the training step, which can take minutes ..." in lines
    (at,) = [i for i, line in enumerate(lines) if line.startswith("problem  DALI: ")]
    assert lines[at + 1].startswith("         fix: pip install -e ")
    (at,) = [i for i, line in enumerate(lines) if line.startswith("problem  dataset: ")]
    assert lines[at + 1].startswith("         fix: ")
    assert not any(line.startswith(("ok       reading", "problem  reading")) for line in lines)


def test_a_machine_on_which_jax_does_not_start() -> None:
    started = run(["doctor.py"], env={"JAX_PLATFORMS": "absent"})
    assert started.returncode == 1 and "Traceback" not in started.stderr
    *_, problem, fix, _ = started.stdout.splitlines()
    assert problem.startswith("problem  devices: JAX does not start with JAX_PLATFORMS=absent")
    assert fix.endswith("JAX_PLATFORMS")  # without it, JAX starts in the tests above


def test_an_unknown_architecture_is_refused_before_the_checks() -> None:
    with pytest.raises(UserError, match="'resnet17' is unknown: choose from"):
        doctor.main(["--model.arch", "resnet17"])


def test_every_option_of_a_run_is_an_option_of_the_doctor() -> None:
    assert flatten(doctor.options_from(None)).keys() == flatten(Config()).keys() | {"json"}
