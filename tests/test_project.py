"""The files around the code: the documentation's site, the workflow, the images, the changelog."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from seresnext_jax import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, the navigation, and the docstrings that the reference shows."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site/reference/library.html").read_text(encoding="utf-8")
    assert "load_weights" in page and "a folder from the Hugging Face hub" in page


def test_the_workflow_runs_what_a_change_has_to_pass() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step["run"] for step in jobs["check"]["steps"] if "run" in step]
    assert commands == [".ci/run"] and os.access(ROOT / ".ci/run", os.X_OK)
    versions = jobs["check"]["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    assert "make docs" in [step.get("run") for step in jobs["docs"]["steps"]]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.nvidia"])
def test_an_image_installs_what_exists(name: str) -> None:
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", "", text).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    for word, rest in instructions:
        assert word in {"ARG", "FROM", "COPY", "RUN", "WORKDIR", "CMD"}
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    arguments = dict(
        rest.split("=", 1) for word, rest in instructions if word == "ARG" and "=" in rest
    )
    extras = re.findall(r"EXTRAS=(\w+)", text)
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    if "DALI" in arguments:
        assert arguments["DALI"] in PROJECT["optional-dependencies"]["cuda13"]
    assert f"docker build -f docker/{name} " in text
    assert lines[-1] == 'CMD ["seresnext-train", "--help"]'
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    kept = {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "configs", "convert"}
    assert not kept & set(ignored)


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == __version__
