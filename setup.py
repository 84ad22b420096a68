"""Builds the wheel: the programs and configs/ go into seresnext_jax/programs/, with a command each.

In a checkout they stay where they are; names as general as train and configs should not be in
site-packages. Everything else is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LEFT_OUT = ("setup.py", "benchmark.py")
"""benchmark.py measures a checkout, with the tests' PyTorch model."""
PROGRAMS = sorted(path for path in ROOT.glob("*.py") if path.name not in LEFT_OUT)
FOLDERS = ("configs", "convert")
COMMANDS = [f"seresnext-{path.stem.replace('_', '-')}" for path in PROGRAMS] + ["seresnext-convert"]


class BuildWithPrograms(build_py):
    """Copies the programs, unless the installation is editable and finds them in the checkout."""

    def run(self) -> None:
        """Build the packages, then add the programs."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "seresnext_jax", "programs")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in PROGRAMS:
            shutil.copy(path, target)
        for name in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=ignored)


setup(
    cmdclass={"build_py": BuildWithPrograms},
    entry_points={
        "console_scripts": [f"{name} = seresnext_jax.commands:main" for name in COMMANDS]
    },
)
