"""Our own code as others need it: one number that says which it is, a wheel of it, and the lock files of what it needs.

An installed project and an editable one give the same: the wheel is put together from the packages as they are
imported here, and from the metadata of the installed distribution.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import importlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bus.errors import MeshError

__all__ = ["LOCK", "TOOLS_LOCK", "WSS_LOCK", "digest", "lock_file", "wheel"]

DISTRIBUTION = "signalmesh"
PACKAGES = ("agents", "bus", "coordinator")
LOCK, TOOLS_LOCK, WSS_LOCK = "requirements.lock", "requirements-install.lock", "requirements-wss.lock"
"""What the project needs, what installs it, and what it needs besides to reach the bus by WebSocket."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time a zip archive knows: the same code gives the same wheel, to the byte."""


def _files() -> Iterator[tuple[str, Path]]:
    """Name in a wheel -> file, of all our packages, sorted."""
    for package in PACKAGES:
        file = importlib.import_module(package).__file__
        assert file is not None
        root = Path(file).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".lock":
                yield f"{package}/{path.relative_to(root).as_posix()}", path


@functools.cache
def digest() -> str:
    """SHA-256 over names and contents of all our files: two that say the same run the same code."""
    whole = hashlib.sha256()
    for name, path in _files():
        whole.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def lock_file(name: str = LOCK) -> bytes:
    """The versions and hashes of everything that the project needs, or of what the file `name` says instead.

    Raises:
        MeshError: neither an installed wheel nor a checkout has it here.
    """
    file = importlib.import_module("coordinator").__file__
    assert file is not None
    for instance in (Path(file).parent / name, Path(file).parent.parent / name):
        if instance.exists():
            return instance.read_bytes()
    raise MeshError(f"{name} is not there: expected in the package coordinator (of a wheel), or beside it")


def wheel() -> tuple[str, bytes]:
    """Name and content of a wheel of the code that runs here, as PEP 427 says.

    Raises:
        MeshError: the project is not installed, so that nothing is known of its name and its commands.
    """
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise MeshError(f"{DISTRIBUTION} is not installed here: `make setup`, or pip install") from None
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
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return f"{DISTRIBUTION}-{installed.version}-py3-none-any.whl", packed.getvalue()
