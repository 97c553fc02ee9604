"""The limit that a refusal is about, from answers of JetStream as other set-ups give them."""

from __future__ import annotations

from typing import Any

import pytest

from bus.nats.account_limits import explain_limit

OPERATED = "A" + "B2" * 27 + "C"


def usage(**values: Any) -> dict[str, Any]:
    limits = {"max_memory": -1, "max_storage": -1, "max_streams": -1, "max_consumers": -1}
    return {"limits": {**limits, **{key: value for key, value in values.items() if key.startswith("max_")}}} | {
        key: value for key, value in values.items() if not key.startswith("max_")
    }


def test_an_account_of_an_operator_has_limits_by_replicas_in_its_jwt():
    info = {**usage(max_streams=0), "tiers": {"R1": usage(max_streams=5, streams=5), "R3": usage(max_streams=7)}}
    text = f"max_streams is 5, 5 used; raise max_streams in the JWT of the account {OPERATED} (nsc edit account)"
    assert explain_limit(10027, {"num_replicas": 1}, info, OPERATED) == text
    assert explain_limit(10027, {"num_replicas": 3}, info, OPERATED).startswith("max_streams is 7, 0 used")
    assert explain_limit(10027, {}, info, OPERATED) == text  # the fuller one


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_storage": 100, "storage": 98, "max_memory": 100, "memory": 1}, "max_store is 100 bytes, 98 bytes used"),
        ({"max_storage": 100, "storage": 9, "max_memory": 100, "memory": 99}, "max_memory is 100 bytes, 99 bytes used"),
        ({"max_storage": -1, "storage": 9, "max_memory": 100, "memory": 99}, "max_memory is 100 bytes, 99 bytes used"),
    ],
)
def test_the_resource_that_ran_out_is_named(values, text):
    assert explain_limit(10002, {}, usage(**values), "A").startswith(text)


def test_replicas_count_and_what_an_unlimited_account_lacks_is_the_servers():
    info = usage(max_storage=250, reserved_storage=10)
    stream = {"max_bytes": 100, "num_replicas": 3}
    assert "accounts.A.jetstream.max_store" in explain_limit(10047, stream, info, "A")
    assert "jetstream.max_file_store in its" in explain_limit(10047, {**stream, "num_replicas": 1}, info, "A")
    assert "jetstream.max_memory_store in its" in explain_limit(10028, {}, usage(), "A")
    unknown = explain_limit(10047, stream, {}, "")
    assert "raise accounts.ACCOUNT.jetstream.max_store or jetstream.max_file_store in the server's" in unknown
