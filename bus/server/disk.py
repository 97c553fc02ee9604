"""How much room there is on the disk of the embedded server's store."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from bus.nats.streams import DiskRoom

__all__ = ["measure_room"]


def measure_room(directory: Path) -> DiskRoom:
    """Measure the disk of `directory`, the server's; it need not exist yet.

    Raises:
        OSError: the disk cannot be asked.
    """
    place = directory.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    used = 0
    for path in (directory / "store").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the server may remove it at this moment
            used += path.stat().st_size if path.is_file() else 0
    return DiskRoom(free_bytes=shutil.disk_usage(place).free, used_bytes=used, place=str(place))
