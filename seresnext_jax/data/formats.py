"""Formats: which files are images, what the others are, and which ones DALI decodes like Pillow."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image

from seresnext_jax.errors import printable

_REFUSED = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow recognises but can't decode, or decodes by running another program, or whose
values have no known range."""

_UNREADABLE = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **dict.fromkeys((".jxl",), "JPEG XL"),
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR"),
    **dict.fromkeys((".eps", ".ps", ".ai", ".svg", ".svgz", ".wmf", ".emf"), "vector graphics"),
    **dict.fromkeys((".exr", ".hdr"), "high dynamic range"),
    **dict.fromkeys((".dcm", ".fits", ".psb", ".xcf"), "another program's"),
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw")
        + (".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f"),
        "camera raw",
    ),
}
"""Suffixes of image formats that are not read, with the names of the formats."""

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"%!PS": "vector graphics",
}
_LONGEST_SUFFIX = 6
"""Characters at the end of a name that contain most images' suffix, such as .jpeg."""
HEAD = 12
"""Bytes at the beginning of a file that tell its format."""
_MANY_KINDS = 8

_DALI_MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "MPO": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
}
"""The formats and modes, by Pillow's names, in which DALI's pixels equal Pillow's.

TIFF is excluded: DALI handles its orientation, grey maps and 16-bit values differently.
"""


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED)


@cache
def _suffixes() -> frozenset[str]:
    """The suffixes of the formats that are read, in lower case with the dot."""
    known, readable = Image.registered_extensions(), readable_formats()
    return frozenset({suffix for suffix, name in known.items() if name in readable} | {".mpo"})


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower().rstrip(".")


@cache
def _is_image_suffix(suffix: str) -> bool:
    return suffix.lower() in _suffixes()


def has_image_suffix(path: str) -> bool:
    """Whether a path has the suffix of a format that is read.

    Check first that the file is not hidden: ``.jpg`` counts as a suffix.
    """
    return _is_image_suffix(path[path.rfind(".") :])


def split_by_suffix(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of images and the other names, each sorted."""
    # In most folders all files are images. Their names have few different ends, so this check is
    # quick.
    ends = {name[-_LONGEST_SUFFIX:] for name in names}
    if all(map(has_image_suffix, ends)):
        return sorted(names), []
    images = sorted(filter(has_image_suffix, names))
    return images, sorted(set(names).difference(images))


def format_names() -> str:
    """The suffixes of images, sorted, as one string; an index records it."""
    return " ".join(sorted(_suffixes()))


def count_kinds(paths: Iterable[str], *, on_disk: bool = True) -> str:
    """Files by suffix, the most frequent first: ``.heic 12, no suffix 3``.

    Args:
      on_disk: the paths exist on disk: count broken links separately.
    """
    counts = Counter(map(_kind if on_disk else _suffix_or_none, paths))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ranked[:_MANY_KINDS], ranked[_MANY_KINDS:]
    if rest:
        shown.append(("other suffixes", sum(count for _, count in rest)))
    return ", ".join(f"{printable(kind)} {count}" for kind, count in shown)


def _kind(path: str) -> str:
    return "broken link" if is_broken_link(path) else _suffix_or_none(path)


def _suffix_or_none(path: str) -> str:
    return _suffix(path) or "no suffix"


def is_broken_link(path: str) -> bool:
    """Whether a path is a link whose target is missing."""
    return os.path.islink(path) and not os.path.exists(path)


def first_bytes(path: str) -> bytes:
    """The first bytes of a file, for `unreadable_kind`; b"" if it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def unreadable_kind(path: str, head: bytes) -> str | None:
    """A file's unsupported image format, such as ``HEIF``; None if none is recognised.

    Args:
      head: the first `HEAD` bytes of the file.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIF"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    return _UNREADABLE.get(_suffix(path))


def dali_decodes(image: Image.Image) -> bool:
    """Whether DALI decodes an image to the same pixels as Pillow; only its header is read."""
    name = image.format or ""
    if image.mode not in _DALI_MODES.get(name, ()):
        return False
    if name in ("BMP", "PPM"):
        # Exclude run-length coding, text, 5-bit colours and other white levels.
        codec, _, _, arguments = image.tile[0]  # type: ignore[attr-defined]
        return codec == "raw" and not any(bits in str(arguments) for bits in (";15", ";16"))
    return True
