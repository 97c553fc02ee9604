"""The proxy that the environment names for an address: what a failed request may be due to."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

__all__ = ["proxy_note"]


def proxy_note(url: str) -> str:
    """` (through the proxy in HTTPS_PROXY)`, with the variable that holds for `url`; "" if none does.

    The address of the proxy is not in the text: it may hold a password.
    """
    from urllib.request import proxy_bypass  # its import takes 20 ms

    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return ""
    if not host or proxy_bypass(host):
        return ""
    names = (f"{parts.scheme}_proxy", "all_proxy")
    found = next((each for name in names for each in (name, name.upper()) if os.environ.get(each)), None)
    return f" (through the proxy in {found})" if found else ""
