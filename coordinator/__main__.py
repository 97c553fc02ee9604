"""`python -m coordinator`: how the children of `up` are started."""

from __future__ import annotations

from coordinator.cli.main import main

if __name__ == "__main__":
    main()
