"""The report of `certify` as Markdown, from the same object as its JSON."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.certify.models import LOST, Certificate, CertifyTarget, Flow, SandboxRow, active_sandboxes
from coordinator.control.kill import KILL_STEPS
from coordinator.reporting.formatting import MIB, NONE, cell, counted, percentile_cells, table, with_unit

__all__ = ["cleanup", "health", "markdown", "target_text", "verdict"]


def verdict(found: Certificate) -> str:
    """The outcome in one sentence."""
    missed = [target.name for target in found.targets if not target.ok]
    met = f"{len(found.targets) - len(missed)} of {len(found.targets)} targets met"
    if found.ok:
        return f"passed: {met}, nothing left behind"
    parts = [met, *([f"missed: {', '.join(missed)}"] if missed else [])]
    if found.problems:
        parts.append(counted(len(found.problems), "problem"))
    return f"FAILED: {'; '.join(parts)}"


def target_text(target: CertifyTarget) -> tuple[str, str]:
    """The limit and the measured value, as text."""
    places = 0 if target.exactly else 3
    limit = f"{'exactly' if target.exactly else '<'} {with_unit(target.limit, target.unit, 0 if target.exactly else 1)}"
    if not target.exactly and target.limit < 0.1:
        limit = f"< {target.limit:g} {target.unit}"
    if target.measured is None:
        return limit, f"{NONE}: {target.why}"
    if target.exactly and target.measured != int(target.measured):
        places = 1
    return limit, with_unit(target.measured, target.unit, places)


def markdown(found: Certificate) -> str:
    """The whole report."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Certificate) -> Iterator[str]:
    machine = found.machine
    yield "# signalmesh: acceptance report"
    yield ""
    yield f"**{verdict(found)}**"
    yield ""
    at = f" ({found.endpoint})" if found.endpoint else ""
    yield (
        f"signalmesh {found.version}, provider `{found.provider}`{at}, nats-server {found.nats_server or NONE}. "
        f"Started {found.started_at:%Y-%m-%d %H:%M:%S} UTC; it took {found.duration_s:.1f} s. Measured on "
        f"{machine.hostname}: {machine.kernel} {machine.machine}, {counted(machine.cpus, 'processor')}, "
        f"{machine.memory_bytes / (1 << 30):.1f} GiB of memory, Python {machine.versions.get('python', '?')}."
    )
    yield ""
    yield "Every value below was measured in this run. If one could not be measured, the reason is given."
    for part in (
        _summary, _targets, _sandboxes, _topology, _agents, _flow, _memory, _fault, _audit, _alerts, health, cleanup,
    ):  # fmt: skip
        yield ""
        yield from part(found)


def _summary(found: Certificate) -> Iterator[str]:
    yield "## Executive summary"
    yield ""
    by_name = {target.name: target for target in found.targets}
    flow, rate = found.flow.tick_to_decision_ms, found.throughput.decisions_per_s
    active_names, known = active_sandboxes(found.sandboxes), {row.sandbox for row in found.sandboxes}
    active = sum(row.status == "active" for row in found.agents)
    yield (
        f"- {len(active_names)} of {len(known)} sandboxes and {active} of {len(found.agents)} agents were active at "
        "the end of the run."
    )
    for row in found.sandboxes:
        if row.state == LOST:
            became = "another one replaced it" if row.sandbox in active_names else "nothing replaced it"
            yield f"- **Sandbox {row.name} was lost**: {row.why}; {became}."
    yield f"- A paced round took {with_unit(flow.p50, 'ms')} from tick to decision (median of {flow.n})."
    yield (
        f"- Without pauses, the coordinator published {with_unit(rate, 'decisions per second', 0)} from queued messages"
        + (f" ({found.throughput.why})." if found.throughput.why else ".")
    )
    if found.fault is not None:
        yield (
            f"- {found.fault.agent} was killed ({found.fault.signal}): {found.fault.outcome}; live again after "
            f"{target_text(by_name['recovery'])[1]}, {target_text(by_name['data loss'])[1]} lost or duplicated, "
            f"{target_text(by_name['restoration'])[1]} restored."
        )
    else:
        yield "- No agent was killed, so recovery was not measured."
    for problem in found.problems:
        yield f"- PROBLEM: {cell(problem)}"


def _targets(found: Certificate) -> Iterator[str]:
    yield "## Targets"
    yield ""
    rows = []
    for target in found.targets:
        limit, measured = target_text(target)
        rows.append([target.name, limit, measured, "met" if target.ok else "**MISSED**", target.how])
    yield from table(("target", "limit", "measured", "", "what was measured"), rows)


def _sandboxes(found: Certificate) -> Iterator[str]:
    yield "## Sandboxes"
    yield ""
    rows = []
    for row in found.sandboxes:
        probe = row.probe
        seen = (
            [row.why or NONE] + [""] * 5
            if probe is None
            else [
                f"{probe.kernel}, {probe.hostname}",
                f"{probe.user} ({probe.uid})",
                f"{probe.own_processes} of {probe.processes}",
                f"{probe.cpus}, {probe.memory_bytes / (1 << 30):.1f} GiB",
                NONE if probe.own_memory_bytes is None else with_unit(probe.own_memory_bytes / MIB, "MiB"),
                ", ".join(f"{name} {version}" for name, version in probe.versions.items()),
            ]
        )
        rows.append(
            [
                row.name,
                _provider(found, row),
                row.state,
                with_unit(row.received_ms, "ms", 0),
                with_unit(row.probe_ms, "ms"),
                with_unit(row.probed_ms, "ms", 0),
                *seen,
            ]
        )
    heads = (
        "sandbox", "provider", "state", "first heartbeat after `up`", "probe took", "answered after `up`",
        "kernel, host", "user", "own processes of visible ones", "processors, memory", "own memory then, PSS",
        "versions",
    )  # fmt: skip
    yield from table(heads, rows)
    yield ""
    yield "Isolation, by comparing each probe with one of this process, outside:"
    yield ""
    for row in found.sandboxes:
        yield f"- {row.name}: {cell(row.isolation.text if row.isolation else f'{NONE}: {row.why}')}"
    yield ""
    yield "How signalmesh was installed:"
    yield ""
    for row in found.sandboxes:
        yield f"- {row.name}: {cell(_installed(row))}"


def _provider(found: Certificate, row: SandboxRow) -> str:
    """A provider called e2b may use a custom endpoint."""
    if row.provider is None:
        return NONE
    return row.provider if row.provider == "local" or not found.endpoint else f"{row.provider}: {found.endpoint}"


def _installed(row: SandboxRow) -> str:
    if row.probe is None:
        return f"{NONE}: {row.why}"
    found = row.probe.installed
    if found is None or not row.name.endswith(
        found.sandbox_id
    ):  # it is of the sandbox that the template was created from
        return "it was installed before"
    steps = ", ".join(f"{step} {duration_s:.2f}" for step, duration_s in found.steps.items())
    why = f"; not by uv: {found.why}" if found.why else ""
    return f"installed by {found.by} in {found.duration_s:.2f} s ({steps}), each file checked against its hash{why}"


def _topology(found: Certificate) -> Iterator[str]:
    yield "## Topology"
    yield ""
    yield "As observed: an arrow where an agent answered messages of another one, or a decision had its vote."
    yield ""
    names = {agent.name: f"a{at}" for at, agent in enumerate(found.agents)}
    yield "```mermaid"
    yield "flowchart LR"
    for at, row in enumerate(row for row in found.sandboxes if row.state != LOST):
        yield f'  subgraph s{at}["{row.name} ({_provider(found, row)})"]'
        for agent in found.agents:
            if agent.sandbox == row.name:
                yield f'    {names[agent.name]}["{agent.name}<br/>{agent.kind}"]'
        yield "  end"
    edges: dict[tuple[str, str], list[str]] = {}
    for hop in found.flow.hops:
        edges.setdefault((hop.source, hop.to), []).append(f"{hop.kind} {hop.ms.n}")
    deciders = {hop.to for hop in found.flow.hops if hop.kind == "decision"}
    for voter, votes in found.flow.votes.items():
        for decider in deciders:
            edges.setdefault((voter, decider), []).append(f"vote {votes}")
    for (source, to), what in sorted(edges.items()):
        if source in names and to in names:
            yield f'  {names[source]} -- "{", ".join(what)}" --> {names[to]}'
    yield "```"


def _agents(found: Certificate) -> Iterator[str]:
    yield "## Agents"
    yield ""
    rows = [
        [
            row.name, row.kind, row.sandbox, row.status + (f" ({row.why})" if row.why else ""), row.agent_id,
            row.pid or NONE, row.epoch or NONE, with_unit(row.spawn_ms, "ms"), with_unit(row.ready_ms, "ms"),
            NONE if row.outputs is None else row.outputs, with_unit(row.rss_mb, "MiB"), with_unit(row.cpu_s, "s", 2),
            ", ".join(row.capabilities),
        ]
        for row in found.agents
    ]  # fmt: skip
    heads = (
        "agent", "kind", "sandbox", "state", "agent_id", "pid", "epoch", "claim to process", "claim to live",
        "outputs", "memory", "CPU", "capabilities",
    )  # fmt: skip
    yield from table(heads, rows)


def _flow(found: Certificate) -> Iterator[str]:
    yield "## Communication"
    yield ""
    yield "Paced rounds only, by the server's times of storing: from a message to its answer."
    yield f"With fewer than 100 values the p99 is the maximum. {_counted(found.flow)}"
    yield ""
    rows = [[hop.source, hop.to, hop.kind, *percentile_cells(hop.ms)] for hop in found.flow.hops]
    rows.append(["tick", "decision", "whole round", *percentile_cells(found.flow.tick_to_decision_ms)])
    yield from table(("message of", "answered by", "with", "n", "p50, ms", "p99, ms", "max, ms"), rows)
    yield ""
    rate = found.throughput
    why = rate.why or f"in {with_unit(rate.seconds, 's', 2)} from the first to the last decision"
    yield (
        f"Throughput of {rate.rounds} unpaced rounds: {with_unit(rate.decisions_per_s, 'decisions per second')}, "
        f"{with_unit(rate.messages_per_s, 'messages per second', 0)} ({why}). From the first tick to the last "
        f"decision, with the start of the agents: {with_unit(rate.whole_s, 's', 2)}."
    )


def _counted(flow: Flow) -> str:
    """Which rounds are measured; the numbers add up to all that are stored."""
    measured = flow.tick_to_decision_ms.n
    total = flow.rounds_at_once + flow.rounds_warmup + measured
    others = total - flow.rounds_awaited
    more = f"; the other {others} were decided during its other steps" if others > 0 else ""
    return (
        f"The stream had {counted(total, 'decided round')} when it was read after the fault: {flow.rounds_at_once} "
        f"that came at once and {flow.rounds_warmup} paced ones directly after them, which may have waited, "
        f"are left out; {measured} are measured. certify waited for {flow.rounds_awaited} of all{more}."
    )


def _memory(found: Certificate) -> Iterator[str]:
    yield "## Memory, snapshots, last values"
    yield ""
    rows = [
        [
            row.key, row.bytes or NONE, *percentile_cells(row.read_ms)[1:], (row.sha256 or NONE)[:16],
            f"message {row.sequence}" if row.sequence else f"no: {row.why}",
            {True: "same", False: "**DIFFERENT**", None: f"{NONE}: {row.why}"}[row.mirrored],
        ]
        for row in found.memory
    ]  # fmt: skip
    heads = ("memory key", "bytes", "read p50, ms", "p99, ms", "max, ms", "SHA-256", "in the stream", "in the mirror")
    yield from table(heads, rows, "No memory key was read.")
    yield ""
    rows = [
        [
            row.agent, row.bytes, row.revision, row.sha256[:16],
            {True: "same", False: "**DIFFERENT**", None: f"{NONE}: {row.why}"}[row.mirrored],
        ]
        for row in found.snapshots
    ]  # fmt: skip
    yield from table(("snapshot", "bytes", "revision", "SHA-256", "in the mirror"), rows, "No snapshot was read.")
    yield ""
    last = found.last_values
    yield (
        f"Last values: the newest message of each of {last.subjects} subjects, {last.bytes:,} bytes in all, read in "
        f"{with_unit(last.read_ms.p50, 'ms', 2)} (p50; p99 {with_unit(last.read_ms.p99, 'ms', 2)})."
    )


def _fault(found: Certificate) -> Iterator[str]:
    yield "## Fault timeline"
    yield ""
    fault = found.fault
    if fault is None:
        yield "No agent was killed; see the problems."
        return
    yield (
        f"{fault.signal} to {fault.agent} (pid {fault.pid}, sandbox {fault.sandbox}): {fault.outcome}, epoch "
        f"{fault.epoch_before} to {fault.epoch_after or 'none'}. Times since the signal, when the message was received:"
    )
    yield ""
    rows = [
        [with_unit(getattr(fault, f"{step}_ms"), "ms"), step.replace("_", " "), meaning]
        for step, meaning in KILL_STEPS.items()
    ]
    yield from table(("after", "step", "message"), rows)
    yield ""
    cursor, outputs = found.restored.get("cursor"), found.restored.get("outputs")
    yield (
        f"Its snapshot was restored at message {NONE if cursor is None else cursor}, "
        f"{NONE if outputs is None else outputs} outputs were counted in it, "
        f"{NONE if fault.events_replayed is None else fault.events_replayed} inputs replayed. Of "
        f"{NONE if fault.outputs_checked is None else fault.outputs_checked} outputs "
        f"{NONE if fault.outputs_lost is None else fault.outputs_lost} were lost and "
        f"{NONE if fault.outputs_duplicated is None else fault.outputs_duplicated} duplicated."
    )


def _audit(found: Certificate) -> Iterator[str]:
    yield "## Audit"
    yield ""
    audit = found.audit
    if audit is None:
        yield "There was no audit; see the problems."
        return
    yield (
        f"{'Passed' if audit.ok else '**FAILED**'}: {counted(audit.messages, 'message')}, {audit.gaps} gaps, "
        f"{audit.duplicated} duplicated, {audit.rounds_decided} rounds decided, {audit.rounds_missing} missing; "
        f"mirror: {audit.mirror_compared} compared, {audit.mirror_missing} missing, {audit.mirror_differing} differing."
    )
    for text in (*audit.problems, *audit.notes):
        yield f"- {cell(text)}"


def _alerts(found: Certificate) -> Iterator[str]:
    yield "## Alerts"
    yield ""
    alerts = ", ".join(f"{code} ({count})" for code, count in sorted(found.alerts.items()))
    yield f"Alerts received: {alerts or 'none'}{', the newest of each:' if alerts else '.'}"
    if found.alert_texts:
        yield ""
    for code, text in sorted(found.alert_texts.items()):
        yield f"- {code}: {cell(text)}"


def health(found: Certificate) -> Iterator[str]:
    """The health section, from the newest heartbeats before the clean-up."""
    yield "## Health and cost"
    yield ""
    yield from table(
        (
            "sandbox",
            "state",
            "availability",
            "up",
            "processes",
            "CPU",
            "memory, PSS",
            "memory, RSS",
            "network",
            "cost per hour",
            "so far",
        ),
        [_health_row(row) for row in found.sandboxes],
    )
    yield ""
    yield (
        "From the newest heartbeats before the clean-up. Availability: the share of the time since the first heartbeat "
        "of the host in which it was alive. CPU: of one processor, since the start of the host. PSS divides shared "
        "pages among the processes that have them (the host measures it less often than the rest); RSS counts them for "
        "each. Cost so far: the price times the time since the sandbox was created, or since the start of a local host."
    )


def _health_row(row: SandboxRow) -> list[str]:
    health = row.health
    network = health.network
    if health.rx_bytes is not None and health.tx_bytes is not None:
        network = f"{health.rx_bytes / MIB:.2f} MiB in, {health.tx_bytes / MIB:.2f} out"
    price = f"${health.price_per_hour:.4f} ({health.price_source})" if health.price_per_hour is not None else ""
    return [
        row.name,
        row.state,
        NONE if health.availability is None else f"{100 * health.availability:.2f} % of {health.seen_s:.1f} s",
        with_unit(row.uptime_s, "s"),
        NONE if health.processes is None else str(health.processes),
        with_unit(health.cpu_percent, "%"),
        with_unit(health.pss_mb, "MiB"),
        with_unit(health.rss_mb, "MiB"),
        network,
        price or health.price_source,
        health.price_source if health.cost is None else f"${health.cost:.6f}",
    ]


def cleanup(found: Certificate) -> Iterator[str]:
    """The clean-up section: the checks after the run, and the steps of certify."""
    yield "## Clean-up status"
    yield ""
    done = found.cleanup
    yield (
        f"`signalmesh up` ended with exit code {NONE if done.exit_code is None else done.exit_code}; "
        f"the clean-up took {with_unit(done.duration_s, 's')}. Checks afterwards:"
    )
    yield ""
    rows = [
        [one.what, one.how, f"{NONE}: {one.why}" if one.orphans is None else "; ".join(one.orphans) or "none"]
        for one in done.checks
    ]
    yield from table(("what", "how", "left"), rows, "No check ran.")
    for text in done.earlier:
        yield ""
        yield f"Earlier run: {cell(text)}"
    yield ""
    yield (
        "The steps of certify, one after the other. The swarm runs meanwhile, so an event that happened before its "
        "step took no waiting. The start times of agents are under Agents, those of rounds under Communication, both "
        "by the server's clock."
    )
    yield ""
    yield from table(
        ("step of certify", "took certify"), [[step.name, f"{step.duration_s:.2f} s"] for step in found.steps]
    )
