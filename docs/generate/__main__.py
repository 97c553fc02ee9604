"""`make reference`: writes docs/reference/."""

from __future__ import annotations

from docs.generate.pages import write

if __name__ == "__main__":
    write()
