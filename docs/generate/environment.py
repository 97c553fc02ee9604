"""environment.md: every environment variable that the product reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from agents.feeds.candle_cache import CACHE_VARIABLE
from bus.nats.credentials import (
    CA_VARIABLE,
    CERTIFICATE_KEY_VARIABLE,
    CERTIFICATE_VARIABLE,
    CREDS_VARIABLE,
    FIRST_VARIABLE,
    SEED_VARIABLE,
)
from bus.nats.key_files import KEYS_VARIABLE
from coordinator.config.telemetry import WEBHOOK_VARIABLE
from coordinator.reporting.formatting import PROGRESS_VARIABLE
from coordinator.runner.child_process import LISTENER_VARIABLE
from coordinator.runner.preflight import TRAITS_VARIABLE
from coordinator.telemetry.otel_env_check import _FILES as FILES
from docs.generate.cli import root
from docs.generate.markdown import code, page, sentence, table
from docs.generate.source import called, calls, literal, product, tree

VARIABLE = re.compile(r"(SIGNALMESH|E2B|OTEL)_[A-Z0-9_]*[A-Z0-9]")
GLOBAL_OPTIONS = {
    CREDS_VARIABLE: "nats_creds",
    SEED_VARIABLE: "nats_nkey",
    CA_VARIABLE: "nats_ca",
    CERTIFICATE_VARIABLE: "nats_cert",
    CERTIFICATE_KEY_VARIABLE: "nats_cert_key",
    FIRST_VARIABLE: "nats_tls_first",
}
"""Variables that are read without the command line's help -> the option that sets them."""
OWN = {
    WEBHOOK_VARIABLE: "http:// or https:// URL that alerts are posted to. It takes precedence over `[alerts] "
    "webhook` and `[secrets.webhook]`. `up` gives it to the `metrics` process alone. A secret.",
    TRAITS_VARIABLE: "Internal: `up` passes the kinds of the users' classes to the watchdog. Do not set it.",
    CACHE_VARIABLE: "Directory for parsed candle files. `up` sets it to `cache` in its state directory. Without it: "
    "`signalmesh` in `$XDG_CACHE_HOME` or in `~/.cache`.",
    KEYS_VARIABLE: "The directory with the keys of the agents, for the watchdog; `up` sets it.",
    LISTENER_VARIABLE: "Internal: `up` gives a child the number of a listening socket. Do not set it.",
    PROGRESS_VARIABLE: "Internal: `mcp` gives a command the number of a descriptor for its progress. Do not set it.",
}
E2B = {
    "E2B_API_KEY": 'The key of your account, required with `provider = "e2b"`, unless `[secrets.e2b_api_key]` has its '
    "source. Only the provider process has it: `up` "
    "removes it from the environment of all others.",
    "E2B_ACCESS_TOKEN": "Not used. It is removed from the environment together with the key.",
    "E2B_DOMAIN": "Domain of the service; `e2b.app` by default. For another one, status and reports name the endpoint.",
    "E2B_API_URL": "Address of the API, if not that of the domain.",
    "E2B_SANDBOX_URL": "Address of the sandboxes, if not that of the domain.",
    "E2B_DEBUG": "`true` is refused: with it the SDK reports sandboxes as ended without a request.",
}
OTLP = {
    "ENDPOINT": (
        "none",
        "The collector. Without it nothing is exported. `…_TRACES_…` and `…_METRICS_…` are the whole address.",
    ),
    "PROTOCOL": ("http/protobuf", "`http/protobuf`, or `grpc` with `pip install 'signalmesh[grpc]'`."),
    "HEADERS": ("", "`NAME=VALUE` with commas between. Values are never shown."),
    "TIMEOUT": ("10", "Seconds of one export."),
    "COMPRESSION": ("", "`gzip`, and without grpc also `deflate` or `none`."),
    "CERTIFICATE": ("", "File of certificates that sign the collector's."),
    "CLIENT_KEY": ("", "File of the private key for client authentication."),
    "CLIENT_CERTIFICATE": ("", "File of the certificate for client authentication."),
    "INSECURE": ("false", "With grpc: no TLS."),
}
OTEL = {
    "OTEL_SDK_DISABLED": ("false", "`true`: neither traces nor metrics are exported."),
    "OTEL_SERVICE_NAME": ("", "Replaces `service.name`, which is the name of the agent or role."),
    "OTEL_RESOURCE_ATTRIBUTES": ("", "`NAME=VALUE` with commas between. They replace signalmesh's own attributes."),
    "OTEL_TRACES_EXPORTER": ("otlp", "`none`: no traces."),
    "OTEL_METRICS_EXPORTER": ("otlp", "`none`: no metrics by OTLP, as a collector that takes only traces needs it."),
    "OTEL_TRACES_SAMPLER": (
        "50 traces a second",
        "`always_on`, `always_off`, `traceidratio` (with or without `parentbased_`), or `rate_limiting`.",
    ),
    "OTEL_TRACES_SAMPLER_ARG": ("", "The ratio, or traces a second."),
    "OTEL_BSP_MAX_QUEUE_SIZE": ("2048", "Spans that may wait in a process."),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("512", "Spans of one export."),
    "OTEL_BSP_SCHEDULE_DELAY": ("500", "Milliseconds that a span may wait for others."),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("", "Characters of an attribute's value; unlimited by default."),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("", "The same, if the variable above is unset."),
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": ("", "No effect."),
    "OTEL_METRIC_EXPORT_INTERVAL": ("60000", "Milliseconds between two exports of metrics."),
    "OTEL_METRIC_EXPORT_TIMEOUT": ("30000", "Milliseconds that one export of metrics may take."),
}  # fmt: skip
BY_SIGNAL = frozenset({"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"})
"""Their names are put together in bus/observability/otel_env.py, so they are not in the code as a whole."""


def text() -> str:
    """The page.

    Raises:
        LookupError: the code reads a variable that is not described here, or does not read one that is.
    """
    options = _options()
    described = {*options, *GLOBAL_OPTIONS, *OWN, *E2B, *OTEL} - BY_SIGNAL
    if described != (read := set(_read())):
        raise LookupError(f"docs/generate/environment.py: not in both: {sorted(described ^ read)}")
    if set(OTLP) != (parts := set(_read_by_signal())):
        raise LookupError(f"docs/generate/environment.py: OTLP: not in both: {sorted(set(OTLP) ^ parts)}")
    of_all = {item.name: item for item in root().params}
    own = {
        **{
            name: (", ".join(code(option) for option in sorted(of)), meaning) for name, (of, meaning) in options.items()
        },
        **{
            name: (code(of_all[option].opts[0]), sentence(of_all[option].help))
            for name, option in GLOBAL_OPTIONS.items()
        },
        **{name: ("", meaning) for name, meaning in OWN.items()},
    }
    otlp = [(code(f"OTEL_EXPORTER_OTLP_{name}"), default, meaning) for name, (default, meaning) in OTLP.items()]
    return page(
        "Environment variables",
        "An option takes precedence over its variable. The [command line](cli.md) says which command has which option. "
        "Docker Compose has variables of its own, in `.env.example`.",
        "## signalmesh",
        table(("variable", "option", "meaning"), [(code(name), *row) for name, row in sorted(own.items())]),
        "## E2B",
        "See [E2B sandboxes](../deploy/e2b.md).",
        table(("variable", "meaning"), [(code(name), meaning) for name, meaning in E2B.items()]),
        "An installation in a sandbox uses the index, certificate and proxy variables of pip there, and passes "
        "them on to uv.",
        "## OpenTelemetry",
        "See [Traces](../ops/traces.md) and [Metrics](../ops/metrics.md#push-to-a-collector). A wrong value "
        "stops no process: "
        "`up`, the roles and `doctor` report it, with the value that is used instead.",
        table(("variable", "default", "meaning"), [(code(name), *row) for name, row in OTEL.items()]),
        "Each of the following also exists for one signal, which takes precedence: "
        "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, "
        "`OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` and so on.",
        table(("variable", "default", "meaning"), otlp),
    )


def _options() -> dict[str, tuple[set[str], str]]:
    """Variable -> the options that read it, and the help of the first one."""
    found: dict[str, tuple[set[str], str]] = {}
    for command in root().commands.values():
        for item in command.params:
            if item.envvar:
                known = found.setdefault(item.envvar, (set(), sentence(item.help or "")))
                known[0].add(item.opts[0])
    return found


def _read() -> Iterator[str]:
    """Every string of the product's code that is the name of a variable."""
    for path in product():
        for item in ast.walk(tree(path)):
            if VARIABLE.fullmatch(literal(item)):
                yield literal(item)


def _read_by_signal() -> Iterator[str]:
    """Last parts of the names that are read for one signal or for all."""
    yield from FILES
    for path in product():
        for call in calls(path):
            if called(call) == "in_effect" and (name := literal(call.args[2])):
                yield name
