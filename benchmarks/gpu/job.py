"""One program to compile: which step of which configuration, for which GPU."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.gpu.targets import GpuName
from seresnext_jax.config import Config, Plan, resolve

ProgramName = Literal["train", "eval", "infer"]


@dataclass(frozen=True)
class Job:
    """A training or evaluation step for a GPU that need not be there."""

    gpu: GpuName
    program: ProgramName
    config: Config
    """Its optimizer batch decides the forward passes of a training step."""
    devices: int

    @property
    def plan(self) -> Plan:
        """The run's numbers, on just as many images as a step needs.

        Raises:
          UserError: a field of the configuration is out of range, or its batches do not divide.
        """
        config = self.config
        images = max(config.optimizer_batch_size, config.batch_size * self.devices)
        return resolve(config, num_images=images, num_devices=self.devices)

    @property
    def passes(self) -> int:
        """Forward passes in one call of the program."""
        return self.plan.accumulation if self.program == "train" else 1

    @property
    def name(self) -> str:
        """The job in one word, for a file."""
        config = self.config
        return (
            f"{self.gpu}-{self.program}-{config.model.arch}-{config.precision}"
            f"-batch{config.batch_size}x{self.devices}x{self.passes}-{config.data.image_size}px"
        )
