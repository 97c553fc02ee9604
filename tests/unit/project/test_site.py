"""The documentation site builds without a warning, and reads without a network."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.repository import ROOT

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]*)"')
STYLE = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]*)")


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_the_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = [path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.html")]
    styles = [path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.css")]
    assert len(pages) > 40
    assert [found for page in pages for found in LOADED.findall(page)] == []
    assert [found for style in (*pages, *styles) for found in STYLE.findall(style)] == []
    assert all("assets/vendor/mermaid.tiny.min.js" in page for page in pages)  # the theme would fetch one otherwise
