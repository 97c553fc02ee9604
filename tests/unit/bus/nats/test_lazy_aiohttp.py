"""aiohttp, which nats-py uses for WebSocket addresses alone, is imported when it is used."""

from __future__ import annotations

import subprocess

import pytest

from signalmesh import python_command

PROGRAM = """
import sys
import bus.nats.connection
from nats.aio import transport
def loaded(): return "aiohttp.client" in sys.modules
before = loaded()
{use}
print(before, loaded())
"""


@pytest.mark.parametrize(
    ("use", "loaded"),
    [
        ("", False),
        ("transport.TcpTransport()", False),
        ("transport.aiohttp.ClientSession", True),
        ("import aiohttp; assert aiohttp is transport.aiohttp and aiohttp.ClientSession", True),
        ("from aiohttp import web; assert web.Application", True),
    ],
)
def test_it_is_loaded_by_its_first_use(use, loaded, tmp_path):
    interpreter = python_command()[0]
    found = subprocess.run(
        [interpreter, "-c", PROGRAM.format(use=use)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.split() == ["False", str(loaded)]
