"""Check a dataset with a progress bar, and print what was found."""

from seresnext_jax.config import InputConfig
from seresnext_jax.data.check import check_data
from seresnext_jax.report.console import Console


def check_and_print(data: InputConfig, num_classes: int, console: Console) -> int:
    """Check both splits and print what was found; returns 1 if anything is wrong, else 0.

    Raises:
      UserError: no dataset was named.
    """
    with console.bar("decoding images") as progress:
        found = check_data(data, num_classes, progress)
    console.table("Dataset", found.facts)
    for problem in found.problems:
        console.note(f"problem: {problem}")
    console.note(f"{len(found.problems)} problem(s)")
    return 1 if found.problems else 0
