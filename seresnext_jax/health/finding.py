"""`Finding`: the result of one check, as plain data."""

from dataclasses import dataclass, field
from typing import Literal

from seresnext_jax.errors import UserError

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    status: Status
    """warning: it works, but not as well as it could; problem: it does not work."""
    detail: str
    """One line for people."""
    fix: str = ""
    """What to do about a warning or a problem."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Measured values by name, such as ``free_bytes`` or ``images_per_s``."""

    def lines(self) -> list[str]:
        """The finding as lines to print."""
        first = f"{self.status:<8} {self.name}: {self.detail}"
        return [first] + [f"{'':8} fix: {self.fix}"] * bool(self.fix)


def problem_of(name: str, error: UserError) -> Finding:
    """The finding for an error whose message ends with ``: <fix>``."""
    fact, _, fix = str(error).rpartition(": ")
    return Finding(name, "problem", fact, fix)


def shown_bytes(size: float) -> str:
    """A size in MB or GB as text, such as ``1.5 GB``."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
