"""Who imports whom: each file its own room and lower floors, heavy packages in few files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: tuple[set[str], ...] = (
    {
        "commands",
        "errors",
        "ops",
        "output",
        "torch_keys",
    },
    {
        "config",
        "mesh",
        "processes",
        "report",
    },
    {
        "config_files",
        "data",
        "model",
        "unknown_options",
    },
    {
        "cli",
        "training",
    },
    {
        "checkpoint",
    },
    {
        "weights",
    },
    {
        "api",
        "export",
        "health",
        "run",
    },
    {
        "benchmark",
        "check_data",
        "classify",
        "compare",
        "convert",
        "doctor",
        "eval",
        "pack_data",
        "setup",
        "show",
        "train",
    },
)
"""The rooms, folders or files, of each floor, from the ground up."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

SHARED = {"config_check": "config", "plan": "config"}
"""Files in the room of another file, about the same subject."""

WALLS = ("ops.cpu", "ops.gpu")
"""Rooms inside a room: only that room's own files may enter."""

ONLY_IN = {
    "nvidia.dali": {"data.backends.dali"},
    "orbax": {"checkpoint.arrays"},
    "flax.linen": {"model.layers", "model.network"},
    "onnx": {"export.onnx_file"},
    "torch": {"weights.torch_write", "weights.torch_forward"},
}


def module_of(path: Path) -> str:
    """The name of a file in the tables: ``data.open``, ``train``, ``convert.__main__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "seresnext_jax" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {
    module_of(path): path
    for pattern in ("*.py", "seresnext_jax/**/*.py", "convert/**/*.py")
    for path in sorted(ROOT.glob(pattern))
}


def imported_names(source: str) -> set[str]:
    """Every dotted name that a source imports; ``from a import b`` gives ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def imported_modules(name: str) -> set[str]:
    """The files of this project that a file imports, as named in the tables."""
    names = imported_names(FILES[name].read_text())
    return {short for n in names if (short := n.removeprefix("seresnext_jax.")) in FILES} - {name}


def uses(name: str, package: str) -> bool:
    """Whether a file imports a package or something inside it."""
    names = imported_names(FILES[name].read_text())
    return any(n == package or n.startswith(package + ".") for n in names)


def test_imports_are_read_from_every_form() -> None:
    source = "import a.b\nfrom c.d import e as f\ndef g():\n    import h\n"
    assert imported_names(source) == {"a.b", "c.d", "c.d.e", "h"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_one_idea(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 400


def room_of(name: str) -> str:
    """``data.open`` → ``data``; some single files share a room."""
    return SHARED.get(name, name.partition(".")[0])


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_a_place_and_a_purpose(name: str) -> None:
    assert room_of(name) in FLOOR or name == "__init__", f"give {room_of(name)} a floor in FLOORS"
    assert ast.get_docstring(ast.parse(FILES[name].read_text())), f"{name} says no purpose"


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_from_its_own_room_and_from_floors_below(name: str) -> None:
    room = room_of(name)
    for other in imported_modules(name) - {"__init__"}:
        inside = room_of(other) == room
        below = FLOOR[room_of(other)] < FLOOR.get(room, len(FLOORS))
        assert inside or below, f"{name} imports {other}"
        for wall in WALLS:
            if other.startswith(wall + ".") and not name.startswith(wall + "."):
                assert name.rpartition(".")[0] == "ops", f"{name} imports {other}"


def test_no_file_imports_itself_through_others() -> None:
    TopologicalSorter({name: imported_modules(name) for name in FILES}).prepare()


def test_the_step_does_not_know_the_model() -> None:
    assert not {name for name in imported_modules("training.step") if room_of(name) == "model"}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_heavy_package_stays_in_its_files(package: str) -> None:
    users = {name for name in FILES if uses(name, package)}
    assert users <= ONLY_IN[package], f"{package} is imported by {sorted(users)}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_needs_only_the_schema(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    own = {n for n in imported_names(source) if n.startswith("seresnext_jax")}
    assert all(n.startswith("seresnext_jax.config") for n in own)


def test_a_program_imports_late_what_it_may_not_need() -> None:
    """A wrong option is answered at once."""
    late = ["torch", "matplotlib", "tensorboardX", "nvidia.dali", "orbax.checkpoint"]
    programs = "train, eval, classify, seresnext_jax.show, seresnext_jax.compare"
    code = f"import sys, {programs}; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
