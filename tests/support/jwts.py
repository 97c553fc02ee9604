"""JWTs as NATS has them, and the part of `nsc` that `signalmesh keys export --nsc` uses: run as a program, it is that.

It keeps what it makes as files in $NSC_DIR, and writes there the server's configuration. The real one is a Go program
that cannot be had where these tests run; names and meanings of the options are those of its source.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import nkeys

UNLIMITED = dict.fromkeys(("subs", "data", "payload"), -1)
ACCOUNT_LIMITS = {
    **UNLIMITED,
    **dict.fromkeys(("imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams", "consumer"), -1),
    "wildcards": True,
}
SERVER = "server.conf"


def key_pair(kind: int) -> tuple[str, nkeys.KeyPair]:
    """A new seed of this kind (nkeys.PREFIX_BYTE_USER, …), and its pair of keys."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return seed.decode(), nkeys.from_seed(bytearray(seed))


def signed(claims: dict[str, Any], by: nkeys.KeyPair, public_key: str, name: str = "") -> str:
    """The JWT about the owner of `public_key`."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    payload = {"iat": int(time.time()), "iss": by.public_key.decode(), "sub": public_key, "name": name, "nats": claims}
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = f"{part(json.dumps(header).encode())}.{part(json.dumps(payload).encode())}"
    return f"{body}.{part(by.sign(body.encode()))}"


def make_operator(directory: Path, account: str) -> None:
    """An operator with this account, in the directory of the program, which `install` has put on the way."""
    operator, _ = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
    for name, seed in (("operator", operator), (account, key_pair(nkeys.PREFIX_BYTE_ACCOUNT)[0])):
        (directory / f"{name}.seed").write_text(seed)
    _write_server(directory, account, {})


def install(directory: Path) -> dict[str, str]:
    """Have `nsc` be this program; returns the environment for that."""
    directory.mkdir()
    program = directory / "nsc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"NSC_DIR": str(directory), "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}


def _pair(directory: Path, name: str) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray((directory / f"{name}.seed").read_bytes()))


def _write_server(directory: Path, account: str, mappings: dict[str, Any]) -> None:
    operator, owner = _pair(directory, "operator"), _pair(directory, account)
    (directory / "mappings.json").write_text(json.dumps(mappings))
    system = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)[1].public_key.decode()
    own = operator.public_key.decode()
    known = {
        owner.public_key.decode(): {"limits": ACCOUNT_LIMITS, "mappings": mappings},
        system: {"limits": {**ACCOUNT_LIMITS, "mem_storage": 0, "disk_storage": 0}},
    }
    accounts = "".join(
        f"  {key}: {signed({'type': 'account', 'version': 2, **claims}, operator, key)}\n"
        for key, claims in known.items()
    )
    (directory / SERVER).write_text(
        f"operator: {signed({'type': 'operator', 'version': 2}, operator, own)}\nsystem_account: {system}\n"
        f"resolver: MEMORY\nresolver_preload: {{\n{accounts}}}\n"
    )


def _subjects(given: list[str] | None) -> list[str]:
    return [subject for one in given or () for subject in one.split(",")]


def main() -> None:
    """`nsc add user`, `nsc delete user`, `nsc describe user --raw`, `nsc add mapping`."""
    directory = Path(os.environ["NSC_DIR"])
    parser = argparse.ArgumentParser(prog="nsc")
    parser.add_argument("verb", choices=("add", "delete", "describe"))
    parser.add_argument("what", choices=("user", "mapping"))
    for option in ("--account", "--name", "--public-key", "--response-ttl", "--from", "--to"):
        parser.add_argument(option)
    parser.add_argument("--allow-pub-response", type=int, nargs="?", const=1)
    for option in ("--allow-pub", "--allow-sub", "--deny-pub", "--deny-sub"):
        parser.add_argument(option, action="append")
    parser.add_argument("--raw", action="store_true")
    given = parser.parse_args()
    file = directory / f"{given.name}.jwt"
    if given.what == "mapping":
        mappings = json.loads((directory / "mappings.json").read_text())
        mappings[vars(given)["from"]] = [{"subject": given.to}]
        _write_server(directory, given.account, mappings)
    elif given.verb == "delete":
        file.unlink()  # without a user of that name: an error
    elif given.verb == "describe":
        assert given.raw
        sys.stdout.write(file.read_text())
    else:
        assert not file.exists(), f'the user "{given.name}" already exists'
        response = {}
        if given.allow_pub_response is not None:
            ttl = int(given.response_ttl.removesuffix("s")) * 1_000_000_000
            response = {"resp": {"max": given.allow_pub_response, "ttl": ttl}}
        claims = {
            "type": "user",
            "version": 2,
            **UNLIMITED,
            "pub": {"allow": _subjects(given.allow_pub), "deny": _subjects(given.deny_pub)},
            "sub": {"allow": _subjects(given.allow_sub), "deny": _subjects(given.deny_sub)},
            **response,
        }
        file.write_text(signed(claims, _pair(directory, given.account), given.public_key, given.name))


if __name__ == "__main__":
    main()
