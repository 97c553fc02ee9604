"""The command `keys`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bus.errors import EXIT_DONE, EXIT_FAILED, UsageError
from coordinator.cli.options import STATE_DIR, Json, StateDir, print_json


def keys(
    action: Annotated[Literal["list", "rotate"], typer.Argument(help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Identities, such as agent-research-1; default: all."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With rotate: replace every key.")] = False,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """List the keys of a swarm with authentication, or replace some; a running swarm uses the new ones at once."""
    from coordinator.security.listing import list_keys, print_keys, rotate_keys

    named = tuple(names or ())
    if everything and (named or action == "list"):
        raise UsageError("--all: expected with rotate, and without names")
    if action == "rotate" and not (named or everything):
        raise UsageError("keys rotate: expected names, or --all; `signalmesh keys list` shows them")
    found = list_keys(state_dir, named) if action == "list" else rotate_keys(state_dir, named)
    if json:
        print_json(found)
    else:
        print_keys(found)
    raise typer.Exit(EXIT_FAILED if any(key.problem for key in found.keys) else EXIT_DONE)
