"""Files and directories of a sandbox (see conforming.py)."""

from __future__ import annotations

import pytest
from e2b import (
    FileType,
    InvalidArgumentException,
    NotFoundException,
)


async def test_a_file_is_written_read_and_seen_by_commands(sandbox):
    home = (await sandbox.commands.run("pwd")).stdout.strip()
    written = await sandbox.files.write("a/b.txt", "héllo\n")
    assert (written.name, written.path) == ("b.txt", f"{home}/a/b.txt")
    assert await sandbox.files.read("a/b.txt") == "héllo\n"
    assert await sandbox.files.read(f"{home}/a/b.txt") == "héllo\n"
    assert (await sandbox.commands.run("cat a/b.txt; echo more >>a/b.txt")).stdout == "héllo\n"
    assert await sandbox.files.read("a/b.txt") == "héllo\nmore\n"
    await sandbox.files.write("a/b.txt", "new")
    assert await sandbox.files.read("a/b.txt") == "new"


@pytest.mark.parametrize("options", [{}, {"use_octet_stream": True}, {"gzip": True}], ids=["form", "octets", "gzip"])
async def test_bytes_travel_unchanged(sandbox, options):
    data = bytes(range(256)) * 4000
    await sandbox.files.write("data", data, **options)
    assert bytes(await sandbox.files.read("data", format="bytes")) == data
    async with await sandbox.files.read("data", format="stream") as chunks:
        assert b"".join([chunk async for chunk in chunks]) == data
    assert (await sandbox.files.get_info("data")).size == len(data)


async def test_several_files_are_written_at_once(sandbox):
    await sandbox.files.write_files([{"path": "one", "data": "1"}, {"path": "deep/er/two", "data": b"2"}])
    assert (await sandbox.files.read("one"), await sandbox.files.read("deep/er/two")) == ("1", "2")


async def test_directories_are_made_listed_renamed_and_removed(sandbox):
    assert await sandbox.files.make_dir("x/y") is True
    assert await sandbox.files.make_dir("x/y") is False
    await sandbox.files.write("x/y/file", "abc")
    assert [found.name for found in await sandbox.files.list("x")] == ["y"]
    assert sorted(found.name for found in await sandbox.files.list("x", depth=2)) == ["file", "y"]
    info = await sandbox.files.get_info("x/y/file")
    assert (info.name, info.type, info.size) == ("file", FileType.FILE, 3)
    assert (await sandbox.files.get_info("x/y")).type == FileType.DIR
    moved = await sandbox.files.rename("x/y/file", "x/other")
    assert moved.name == "other"
    assert not await sandbox.files.exists("x/y/file")
    assert await sandbox.files.exists("x/other")
    await sandbox.files.remove("x")
    assert not await sandbox.files.exists("x")


async def test_what_is_not_there_is_not_found(sandbox):
    for call in (
        lambda: sandbox.files.read("none"),
        lambda: sandbox.files.get_info("none"),
        lambda: sandbox.files.list("none"),
        lambda: sandbox.files.rename("none", "some"),
    ):
        with pytest.raises(NotFoundException):
            await call()
    assert await sandbox.files.exists("none") is False
    await sandbox.files.make_dir("directory")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.read("directory")
