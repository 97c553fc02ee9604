"""The running build of signalmesh: its digest, a wheel of it, and its lock files.

The wheel is built from the imported packages, so that an editable installation gives the same wheel.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import signalmesh
from bus.errors import MeshError

__all__ = ["LOCK", "TOOLS_LOCK", "WSS_LOCK", "digest", "lock_file", "wheel"]

DISTRIBUTION = "signalmesh"
LOCK, TOOLS_LOCK, WSS_LOCK = "requirements.lock", "requirements-install.lock", "requirements-wss.lock"
"""Requirements of the project, of its installation, and the additional ones for a WebSocket."""
OLDEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The oldest time of the zip format, fixed so that equal code gives a byte-identical wheel."""


def _files() -> Iterator[tuple[str, Path]]:
    """Name in a wheel -> file, of all our packages, sorted, and of signalmesh.py."""
    root = Path(signalmesh.ROOT)
    for package in signalmesh.PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".lock":
                yield path.relative_to(root).as_posix(), path
    yield "signalmesh.py", root / "signalmesh.py"


@functools.cache
def digest() -> str:
    """SHA-256 over names and contents of all our files: equal digests mean equal code."""
    whole = hashlib.sha256()
    for name, path in _files():
        whole.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def lock_file(name: str = LOCK) -> bytes:
    """Content of the lock file `name`, with versions and hashes.

    Raises:
        MeshError: it is neither in the installed wheel nor in the checkout.
    """
    root = Path(signalmesh.ROOT)
    for path in (root / "coordinator" / name, root / name):
        if path.exists():
            return path.read_bytes()
    raise MeshError(f"{name} not found: expected in the package coordinator (of a wheel) or next to it")


def wheel() -> tuple[str, bytes]:
    """Name and content of a wheel of the running code (PEP 427).

    Raises:
        MeshError: the project is not installed, so its metadata is missing.
    """
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise MeshError(f"{DISTRIBUTION} is not installed: run `make setup` or pip install") from None
    about = f"{DISTRIBUTION}-{installed.version}.dist-info"
    contents = {name: path.read_bytes() for name, path in _files()}
    contents[f"{about}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    contents[f"{about}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    contents[f"{about}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION} ({installed.version})\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, data in contents.items():
        summed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        rows.writerow((name, f"sha256={summed}", len(data)))
    rows.writerow((f"{about}/RECORD", "", ""))
    contents[f"{about}/RECORD"] = record.getvalue().encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, OLDEST_ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return f"{DISTRIBUTION}-{installed.version}-py3-none-any.whl", packed.getvalue()
