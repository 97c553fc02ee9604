"""Answers of a collector that are no answers: without end, compressed, or slow. Only the status counts."""

from __future__ import annotations

import contextlib
import gzip
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bus.observability.otlp import make_exporter

GROWTH_KB = 64 * 1024


@contextmanager
def collector(head: bytes, body: bytes, *, endless: bool) -> Iterator[tuple[str, list[int]]]:
    """Its address, and how many requests each of its connections has had."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[int] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connections.append(0)
            at, buffered = len(connections) - 1, b""
            while True:
                while b"\r\n\r\n" not in buffered:
                    if not (data := connection.recv(65536)):
                        return
                    buffered += data
                header, _, buffered = buffered.partition(b"\r\n\r\n")
                size = int(header.lower().partition(b"content-length:")[2].split()[0])
                while len(buffered) < size:
                    buffered += connection.recv(65536)
                buffered = buffered[size:]
                connections[at] += 1
                connection.sendall(head)
                connection.sendall(body)
                while endless:
                    connection.sendall(body)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def export(monkeypatch: pytest.MonkeyPatch, url: str, times: int = 1) -> list[Any]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    exporter = make_exporter("http/protobuf", "traces")
    try:
        return [exporter.export([]).name for _ in range(times)]
    finally:
        exporter.shutdown()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(bytes(1 << 24))),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
    ids=["endless", "bomb", "huge", "chunked"],
)
def test_an_answer_without_end_is_not_read(monkeypatch, head, body):
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with collector(head, body, endless=True) as (url, _):
        assert export(monkeypatch, url) == ["SUCCESS"]
    assert time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB


def test_an_answer_that_breaks_off_counts_by_its_status(monkeypatch):
    with collector(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"no size\r\n", endless=False) as (url, _):
        assert export(monkeypatch, url) == ["SUCCESS"]


def test_short_answers_keep_the_connection(monkeypatch):
    with collector(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", endless=False) as (url, connections):
        assert export(monkeypatch, url, 5) == ["SUCCESS"] * 5
    assert connections == [5]


def test_a_refusal_is_a_failure(monkeypatch):
    with collector(b"HTTP/1.1 400 No\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536, endless=True) as (url, _):
        assert export(monkeypatch, url) == ["FAILURE"]
