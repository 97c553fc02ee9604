"""The files of certify's report: checked before the run, so that a wrong name does not cost the results."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import orjson

from bus.errors import UsageError
from coordinator.certify.markdown import markdown
from coordinator.certify.models import Certificate

__all__ = ["ReportFiles"]

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
EXPECTED = "expected a regular file, or a new one in a directory that can be written"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """The report as `markdown`, and `json` beside it."""

    markdown: Path
    json: Path

    @classmethod
    def of(cls, out: Path, config: Path | None = None) -> Self:
        """The files of `--out`; the check leaves no file. `config` is the file that must not be overwritten.

        Raises:
            UsageError: one of the two cannot be written, or both are the same file, or one is the configuration.
        """
        if out.name in ("", ".", "..", "-"):
            there = "; --json prints it to the standard output" if out.name == "-" else ""
            raise UsageError(f"--out {out}: expected the name of a file for the report{there}")
        files = cls(out, out.with_suffix(".json"))
        if files.json == out:
            raise UsageError(f"--out {out}: expected the name of the Markdown report; its JSON goes to {out} by itself")
        for path in (files.markdown, files.json):
            _check(path, files.option_of(path))
            if config is not None and path.resolve() == config.resolve():
                raise UsageError(f"{files.option_of(path)} is the --config: expected another name")
        if files.markdown.resolve() == files.json.resolve():
            raise UsageError(f"--out {out}: the report and its JSON are one file, {out.resolve()}: expected two")
        return files

    def option_of(self, path: Path) -> str:
        """The option that names `path`, and the path, for an error message."""
        beside = f" its JSON goes to {path}, which" if path == self.json else " it"
        return f"--out {self.markdown}:{beside}"

    def write(self, found: Certificate) -> None:
        """Write both, the second one also if the first one fails.

        Raises:
            UsageError: one could not be written, or neither.
        """
        contents = {
            self.markdown: markdown(found).encode(),
            self.json: orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z) + b"\n",
        }
        problems = []
        for path, content in contents.items():
            try:
                path.write_bytes(content)
            except OSError as error:
                problems.append(f"{path} could not be written: {error.strerror}")
        if problems:
            raise UsageError(f"--out {self.markdown}: {'; '.join(problems)}; the results were printed")


def _check(path: Path, option: str) -> None:
    try:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            target = path.resolve()  # a link may point to a file that does not exist yet
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            target.unlink()  # a run that fails leaves no empty report
            return
        if not stat.S_ISREG(mode):
            raise UsageError(f"{option} is {KINDS.get(stat.S_IFMT(mode), 'no file')}: {EXPECTED}")
        with path.open("ab"):
            pass
    except OSError as error:
        raise UsageError(f"{option} cannot be written: {error.strerror}; {EXPECTED}") from None
