"""Check this machine, and a run before it starts: what works, what does not, and how to fix it.

Alone it checks packages, NVIDIA's driver, a convolution on each device, DALI and the C++ compiler.
With --config or any option of train.py it also checks that run: the class folders, the speed of
reading against what the devices need, the disk space for checkpoints, and the memory of the
training step, which is compiled for it. The exit status is 1 if something is a problem.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

import jax

from seresnext_jax.cli import check_output, parse_over_config, run, write_output
from seresnext_jax.config import Config
from seresnext_jax.config_check import check
from seresnext_jax.health.data import check_dataset, check_disk, check_reading
from seresnext_jax.health.finding import Finding
from seresnext_jax.health.machine import (
    check_compiler,
    check_convolution,
    check_dali,
    check_devices,
    check_driver,
    check_packages,
)
from seresnext_jax.health.memory import abstract_state, check_memory, size_in_bytes
from seresnext_jax.mesh import make_mesh
from seresnext_jax.model.network import find_architecture
from seresnext_jax.report.console import Console
from seresnext_jax.run import runtime
from seresnext_jax.run.environment import describe_environment


@dataclass(frozen=True)
class DoctorConfig(Config):
    """The options of doctor.py: those of the run that it checks, and --json."""

    json: str = ""
    """Also write the findings to this JSON file."""


def options_from(config: Config | None) -> DoctorConfig:
    """The default options, taken from a config file if there is one."""
    if config is None:
        return DoctorConfig()
    return DoctorConfig(**{f.name: getattr(config, f.name) for f in fields(Config)})


def main(argv: list[str]) -> int:
    """Run the program; returns 1 if something is a problem."""
    config = parse_over_config(options_from, argv, program="doctor.py", description=__doc__ or "")
    check_output("--json", config.json)
    planned = replace(config, json="", debug=False) != DoctorConfig()
    if planned:
        check(config)
        find_architecture(config.model.arch)
    runtime.start(config)
    console = Console(enabled=True)
    devices = check_devices()
    environment = describe_environment() if devices.numbers else {}
    if environment:
        console.table("This machine", list(environment.items()))
    findings = []
    for finding in check_all(config if planned else None, devices, console):
        findings.append(finding)
        for line in finding.lines():
            console.note(line)
    if not planned:
        console.note("To check a run, too, add its --config and options.")
    report = {"environment": environment, "findings": [asdict(found) for found in findings]}
    write_output("--json", config.json, json.dumps(report, indent=2) + "\n")
    return int(any(found.status == "problem" for found in findings))


def check_all(config: Config | None, devices: Finding, console: Console) -> Iterator[Finding]:
    """Yield each check's finding, quick ones first; without a config those of the machine.

    Args:
      devices: the finding of `check_devices`; without devices nothing can be checked on them.
    """
    yield check_packages()
    yield check_driver()
    yield devices
    if not devices.numbers:
        return
    for device in jax.local_devices():
        yield check_convolution(device)
    dali = check_dali(config.data.backend if config else None)
    yield dali
    yield check_compiler(jax.devices()[0].platform)
    if config is None:
        return
    mesh = make_mesh()
    dataset = check_dataset(config)
    yield dataset
    if "problem" not in (dali.status, dataset.status):
        console.note("reading images ...")
        yield check_reading(config, mesh)
    yield check_disk(config, size_in_bytes(abstract_state(config, mesh)))
    console.note("compiling the training step, which can take minutes ...")
    yield check_memory(config, mesh)


if __name__ == "__main__":
    run(main)
