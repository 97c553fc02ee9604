"""The files of a sandbox: real ones, below its directory. Others are refused, though its processes may use them."""

from __future__ import annotations

import grp
import gzip
import os
import pwd
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b.standin.connect import RpcError
from tests.e2b.standin.sandboxes import Sandbox


def resolved(home: Path, path: str) -> Path:
    """A path as a caller writes it: absolute, or from the home directory."""
    below = path.removeprefix("~").lstrip("/") if path.startswith("~") else path
    where = Path(os.path.normpath(home / below))
    if not where.is_relative_to(home):
        raise RpcError("invalid_argument", f"the stand-in serves files below {home} only, not {path}")
    return where


def described(path: Path) -> dict[str, Any]:
    """An EntryInfo, as protobuf's JSON has it: an int64 is a string."""
    found = path.lstat()
    kind = "SYMLINK" if stat.S_ISLNK(found.st_mode) else "DIRECTORY" if stat.S_ISDIR(found.st_mode) else "FILE"
    entry = {
        "name": path.name,
        "type": f"FILE_TYPE_{kind}",
        "path": str(path),
        "size": str(found.st_size),
        "mode": stat.S_IMODE(found.st_mode),
        "permissions": stat.filemode(found.st_mode),
        "owner": pwd.getpwuid(found.st_uid).pw_name,
        "group": grp.getgrgid(found.st_gid).gr_name,
        "modifiedTime": datetime.fromtimestamp(found.st_mtime, UTC).isoformat().replace("+00:00", "Z"),
    }
    return entry | ({"symlinkTarget": str(path.readlink())} if kind == "SYMLINK" else {})


def info(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    path = resolved(sandbox.home, requested.get("path", ""))
    if not os.path.lexists(path):
        raise RpcError("not_found", f"file not found: {path}")
    return {"entry": described(path)}


def make_dir(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    path = resolved(sandbox.home, requested.get("path", ""))
    if path.is_dir():
        raise RpcError("already_exists", f"directory already exists: {path}")
    try:
        path.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError):
        raise RpcError("invalid_argument", f"path already exists but it is not a directory: {path}") from None
    return {"entry": described(path)}


def move(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    source, destination = (resolved(sandbox.home, requested.get(name, "")) for name in ("source", "destination"))
    if not os.path.lexists(source):
        raise RpcError("not_found", f"source file not found: {source}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(destination)
    except OSError as error:
        raise RpcError("internal", f"error renaming: {error}") from None
    return {"entry": described(destination)}


def list_dir(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    path = resolved(sandbox.home, requested.get("path", ""))
    if not path.exists():
        raise RpcError("not_found", f"directory not found: {path}")
    if not path.is_dir():
        raise RpcError("invalid_argument", f"path is not a directory: {path}")
    depth = requested.get("depth") or 1
    below = (entry for entry in sorted(path.rglob("*")) if len(entry.relative_to(path).parts) <= depth)
    return {"entries": [described(entry) for entry in below]}


def remove(sandbox: Sandbox, requested: dict[str, Any]) -> dict[str, Any]:
    path = resolved(sandbox.home, requested.get("path", ""))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return {}


METHODS = {"Stat": info, "MakeDir": make_dir, "Move": move, "ListDir": list_dir, "Remove": remove}
"""Of filesystem.Filesystem. Watching is not among them."""


async def download(request: Request, sandbox: Sandbox) -> Response:
    try:
        path = resolved(sandbox.home, request.query_params.get("path", ""))
    except RpcError as error:
        return refused(400, error.message)
    if not path.exists():
        return refused(404, f"path '{path}' does not exist")
    if not path.is_file():
        return refused(400, f"path '{path}' is a directory")
    return Response(path.read_bytes(), media_type="application/octet-stream")


async def upload(request: Request, sandbox: Sandbox) -> Response:
    """One file of the body, as it is or gzipped; or the parts of a form, each with its path as its file name."""
    named = request.query_params.get("path")
    given: list[tuple[str, bytes]] = []
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_part_size=1 << 30) as form:
            parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            given = [(named or part.filename or "", await part.read()) for part in parts]
    else:
        data = await request.body()
        given = [(named or "", gzip.decompress(data) if request.headers.get("content-encoding") == "gzip" else data)]
    written = []
    for name, data in given:
        try:
            path = resolved(sandbox.home, name)
        except RpcError as error:
            return refused(400, error.message)
        if path.is_dir():
            return refused(400, f"path is a directory: {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written.append({"name": path.name, "type": "file", "path": str(path)})
    return JSONResponse(written)


def refused(status: int, message: str) -> Response:
    return JSONResponse({"code": status, "message": message}, status)
