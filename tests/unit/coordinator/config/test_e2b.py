"""The settings of a sandbox at E2B."""

from __future__ import annotations

import re

import pytest

from bus.errors import ConfigError
from coordinator.config.e2b import E2bSettings, check_settings


def test_the_price_is_that_of_the_configured_size():
    assert E2bSettings().price() == (None, "")
    price, source = E2bSettings(cpu=2, memory_mb=512).price()
    assert price == pytest.approx(2 * 0.0504 + 0.5 * 0.0162)
    assert "https://e2b.dev/pricing" in source
    assert E2bSettings(cpu=2, memory_mb=512, price_per_hour=1.0, price_source="x").price() == (1.0, "x")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (E2bSettings(python="-c"), "k.python"),
        (E2bSettings(python="a\0b"), "k.python"),
        (E2bSettings(template="a\0"), "k.template"),
        (E2bSettings(env={"A": "x\0y"}), "k.env.A"),
    ],
)
def test_what_no_process_can_be_given_is_refused_by_its_key(settings, key):
    with pytest.raises(ConfigError, match=re.escape(key)):
        check_settings("f", "k", "far", settings)


def test_addresses_are_taken_as_e2b_takes_them():
    allow = (
        "203.0.113.7",
        "203.0.113.9/24",
        "2001:db8::/32",
        "example.org",
        "*.Example.org",
        "*.com",
        "xn--bcher-kva.de",
    )
    check_settings("f", "k", "far", E2bSettings(allow=allow, deny=("0.0.0.0/0", "::/0")))
    check_settings("f", "k", "far", E2bSettings(allow=allow[:3]))
    check_settings("f", "k", "far", E2bSettings(timeout_s=3, max_age_s=100))
