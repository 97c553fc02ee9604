"""The tools that act, with `--allow-control`: each runs its command, and is confirmed by a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from coordinator.certify.models import Certificate
from coordinator.chaos.report import Chaos
from coordinator.config.credential_check import check_no_credentials
from coordinator.config.tables import MAX_WEIGHT
from coordinator.config.toml_text import toml_value
from coordinator.control.changes import AddedToSwarm, ChangedSandbox, MovedAgent, RemovedFromSwarm, Scaled
from coordinator.control.kill import KillReport
from coordinator.control.watchdog_client import Restarted, Revived
from coordinator.mcp.answers import Answer, Reading, ToolFailed
from coordinator.mcp.commands import Progress, result_of, run_command
from coordinator.mcp.starting import start_swarm
from coordinator.mcp.swarm import ServedSwarm
from coordinator.mcp.tools import ToolSpec
from coordinator.monitor.models import Status
from coordinator.runner.down import Ended

REPORT = "certify.md"
"""Relative to the state directory."""
Confirm = Annotated[
    bool,
    Meta(description="true: a person has agreed to this call. Without it the person is asked, if the client can ask."),
]
AgentName = Annotated[str, Meta(min_length=1, pattern="^[^-]", description="The agent's name.")]
Word = Annotated[str, Meta(min_length=1, pattern="^[^-]")]
SandboxName = Annotated[Word, Meta(description="The sandbox's name.")]
Seconds = Annotated[float, Meta(gt=0, le=3600, description="Seconds.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentArguments:
    """Which agent."""

    agent: AgentName
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KillArguments:
    """Which agent, and by which signal."""

    agent: AgentName
    signal: Annotated[str, Meta(pattern="^[A-Z0-9]+$", description="KILL, STOP, TERM, … or a number.")] = "KILL"
    wait_s: Seconds = 15.0
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddArguments:
    """The agent to add: of a `kind`, or of a class of the user's own."""

    agent: AgentName
    kind: Annotated[Word, Meta(description="An agent kind that ships with the project.")] | None = None
    agent_class: Annotated[Word, Meta(description="module:Class of an agent of the user's own.")] | None = None
    sandbox: SandboxName | None = None
    weight: Annotated[float, Meta(ge=0, le=MAX_WEIGHT, description="Weight of its vote; 1 without it.")] | None = None
    options: Annotated[dict[str, Any], Meta(description="Options of its kind.")] = field(default_factory=dict)
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveArguments:
    """Which agent, and what becomes of its state."""

    agent: AgentName
    forget: Annotated[bool, Meta(description="true: its saved state is deleted too, for good.")] = False
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveArguments:
    """Which agent, and where it runs from now on."""

    agent: AgentName
    to: SandboxName
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleArguments:
    """How many generated agents of which kind there are to be."""

    kind: Annotated[Word, Meta(description="momentum or mean-reversion.")]
    count: Annotated[int, Meta(ge=0, le=1000, description="Number of generated agents of this kind.")]
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddSandboxArguments:
    """The sandbox to add, and what makes it."""

    sandbox: SandboxName
    provider: Annotated[Literal["local", "e2b"], Meta(description="local: a process group of `up`; e2b: E2B.")] = (
        "local"
    )
    options: Annotated[dict[str, Any], Meta(description="Keys of its table in swarm.toml, such as template.")] = field(
        default_factory=dict
    )
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxArguments:
    """Which sandbox."""

    sandbox: SandboxName
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosArguments:
    """How long, and in which order."""

    for_s: Seconds
    seed: Annotated[int, Meta(description="Seed of the order of faults; without it the order is random.")] | None = None
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpArguments:
    """Options of `up`; all else is as swarm.toml says."""

    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the embedded nats-server; 0: any free one.")] = 4222
    speed: (
        Annotated[float, Meta(ge=0, description="Candles a second of the recorded feeds; 0: as fast as possible.")]
        | None
    ) = None
    wait_s: Seconds = 60.0
    confirm: Confirm = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmArguments:
    """Only whether it is agreed to."""

    confirm: Confirm = False


async def _act(swarm: ServedSwarm, words: Sequence[str], options: Sequence[str], progress: Progress) -> Answer[Any]:
    result = result_of(words[0], await run_command(swarm, [*words, *options], progress))
    return Answer(read=Reading(source="bus", command=swarm.command(*words, named_swarm=False)), result=result)


async def _kill(swarm: ServedSwarm, arguments: KillArguments, progress: Progress) -> Answer[Any]:
    words = ["kill", arguments.agent, "--signal", arguments.signal, "--wait", str(arguments.wait_s)]
    return await _act(swarm, words, swarm.options(), progress)


async def _restart(swarm: ServedSwarm, arguments: AgentArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["restart", arguments.agent], swarm.options(), progress)


async def _revive(swarm: ServedSwarm, arguments: AgentArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["revive", arguments.agent], swarm.options(), progress)


async def _add(swarm: ServedSwarm, arguments: AddArguments, progress: Progress) -> Answer[Any]:
    check_no_credentials(f"agent_add {arguments.agent}", {"options": arguments.options})  # argv is no place for one
    words = ["add", arguments.agent]
    for option, value in (
        ("--kind", arguments.kind),
        ("--class", arguments.agent_class),
        ("--sandbox", arguments.sandbox),
        ("--weight", arguments.weight),
    ):
        words += [] if value is None else [option, str(value)]
    return await _act(swarm, [*words, *_options("agent_add", arguments.options)], swarm.options(), progress)


async def _remove(swarm: ServedSwarm, arguments: RemoveArguments, progress: Progress) -> Answer[Any]:
    words = ["remove", arguments.agent, *(["--forget"] if arguments.forget else [])]
    return await _act(swarm, words, swarm.options(), progress)


async def _move(swarm: ServedSwarm, arguments: MoveArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["move", arguments.agent, "--to", arguments.to], swarm.options(), progress)


async def _scale(swarm: ServedSwarm, arguments: ScaleArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["scale", arguments.kind, str(arguments.count)], swarm.options(), progress)


async def _add_sandbox(swarm: ServedSwarm, arguments: AddSandboxArguments, progress: Progress) -> Answer[Any]:
    check_no_credentials(f"sandbox_add {arguments.sandbox}", {"options": arguments.options})  # argv is no place for one
    options = _options("sandbox_add", arguments.options)
    words = ["sandbox", "add", arguments.sandbox, "--provider", arguments.provider, *options]
    return await _act(swarm, words, swarm.options(), progress)


def _options(tool: str, options: Mapping[str, Any]) -> list[str]:
    """The words for these options, whose values are TOML.

    Raises:
        ToolFailed: one has a null in it.
    """
    words = []
    for key, value in options.items():
        try:
            words += ["--option", f"{key}={toml_value(value)}"]
        except ValueError:
            raise ToolFailed(f"{tool}: argument options.{key}: expected no null; leave it out") from None
    return words


async def _remove_sandbox(swarm: ServedSwarm, arguments: SandboxArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["sandbox", "remove", arguments.sandbox], swarm.options(), progress)


async def _chaos(swarm: ServedSwarm, arguments: ChaosArguments, progress: Progress) -> Answer[Any]:
    seed = [] if arguments.seed is None else ["--seed", str(arguments.seed)]
    words = ["chaos", "--for", str(arguments.for_s), *seed]
    return await _act(swarm, words, swarm.options(named_swarm=False), progress)


async def _certify(swarm: ServedSwarm, _: ConfirmArguments, progress: Progress) -> Answer[Any]:
    words = ["certify", "--out", str(swarm.state_dir / REPORT)]
    result = result_of("certify", await run_command(swarm, words, progress))
    return Answer(read=Reading(source="machine", file=str(swarm.state_dir / REPORT)), result=result)


async def _up(swarm: ServedSwarm, arguments: UpArguments, progress: Progress) -> Answer[Any]:
    if swarm.swarm is not None:
        raise ToolFailed(
            f"swarm_up: this server is for the swarm {swarm.swarm} (--swarm), and `up` runs that of swarm.toml; a "
            "person can start the server without --swarm"
        )
    speed = [] if arguments.speed is None else ["--speed", str(arguments.speed)]
    return await start_swarm(swarm, ["--port", str(arguments.port), *speed], arguments.wait_s, progress)


async def _down(swarm: ServedSwarm, _: ConfirmArguments, progress: Progress) -> Answer[Any]:
    return await _act(swarm, ["down"], swarm.options(named_swarm=False), progress)


CONTROL = (
    ToolSpec(
        name="agent_kill",
        title="Kill an agent",
        description="Sends a signal to an agent's process and reports its recovery, with the outputs lost and "
        "duplicated. Equal to `signalmesh kill AGENT --json`.",
        arguments=KillArguments,
        result=KillReport,
        run=_kill,
        question="Send {signal} to the process of the agent {agent}?",
    ),
    ToolSpec(
        name="agent_restart",
        title="Restart an agent",
        description="Drains an agent, starts it again and waits until it is ready. Equal to `signalmesh restart AGENT "
        "--json`.",
        arguments=AgentArguments,
        result=Restarted,
        run=_restart,
        question="Restart the agent {agent}?",
    ),
    ToolSpec(
        name="agent_revive",
        title="Revive an agent",
        description="Starts a quarantined or drained agent again. Equal to `signalmesh revive AGENT --json`.",
        arguments=AgentArguments,
        result=Revived,
        run=_revive,
        question="Start the quarantined or drained agent {agent} again?",
    ),
    ToolSpec(
        name="agent_add",
        title="Add an agent",
        description="Adds an agent to the running swarm and to its next start; waits until it votes. Its class is "
        "tried before anything changes. Equal to `signalmesh add AGENT --json`.",
        arguments=AddArguments,
        result=AddedToSwarm,
        run=_add,
        question="Add the agent {agent} to the swarm (kind {kind}, class {agent_class}, options {options})?",
    ),
    ToolSpec(
        name="agent_remove",
        title="Remove an agent",
        description="Removes an agent from the running swarm and from its next start: no round waits for it any more, "
        "and it drains. Equal to `signalmesh remove AGENT --json`.",
        arguments=RemoveArguments,
        result=RemovedFromSwarm,
        run=_remove,
        question="Remove the agent {agent} from the swarm (delete its state too: {forget})?",
    ),
    ToolSpec(
        name="agent_move",
        title="Move an agent",
        description="Drains an agent and starts it again in another sandbox, with its state. Equal to `signalmesh move "
        "AGENT --to SANDBOX --json`.",
        arguments=MoveArguments,
        result=MovedAgent,
        run=_move,
        question="Move the agent {agent} to the sandbox {to}?",
    ),
    ToolSpec(
        name="swarm_scale",
        title="Scale the swarm",
        description="Has so many generated agents of a kind beside the configured ones; those beyond the number are "
        "removed with their states. Equal to `signalmesh scale KIND COUNT --json`.",
        arguments=ScaleArguments,
        result=Scaled,
        run=_scale,
        question="Have {count} generated agents of kind {kind}?",
    ),
    ToolSpec(
        name="sandbox_add",
        title="Add a sandbox",
        description="Adds a sandbox to the running swarm and to its next start, here or at E2B; waits until its host "
        "is live. One at E2B costs money. Equal to `signalmesh sandbox add NAME --json`.",
        arguments=AddSandboxArguments,
        result=ChangedSandbox,
        run=_add_sandbox,
        question="Add the sandbox {sandbox} (provider {provider}, options {options})? One at E2B costs money.",
    ),
    ToolSpec(
        name="sandbox_remove",
        title="Remove a sandbox",
        description="Moves the agents of a sandbox to others, then ends its host; also at the next start. Equal to "
        "`signalmesh sandbox remove NAME --json`.",
        arguments=SandboxArguments,
        result=ChangedSandbox,
        run=_remove_sandbox,
        question="Move the agents of the sandbox {sandbox} to others, and end it?",
    ),
    ToolSpec(
        name="chaos",
        title="Random faults",
        description="Injects random faults into the running swarm, measures each recovery, then checks for lost or "
        "duplicated outputs. Equal to `signalmesh chaos --for SECONDS --json`.",
        arguments=ChaosArguments,
        result=Chaos,
        run=_chaos,
        question="Make random faults in the running swarm for {for_s} seconds?",
    ),
    ToolSpec(
        name="certify",
        title="Acceptance run",
        description="Starts a temporary swarm, kills an agent, audits the result and writes certify.md into the state "
        "directory. Reports progress, and can be cancelled. Equal to `signalmesh certify --json`.",
        arguments=ConfirmArguments,
        result=Certificate,
        run=_certify,
        question="Start a temporary swarm on this machine, and kill an agent of it?",
    ),
    ToolSpec(
        name="swarm_up",
        title="Start the swarm",
        description="Starts the swarm of the state directory as a process that goes on when this server ends, and "
        "waits until its agents run. Answers as swarm_status does, and fails with the words of `signalmesh up`. "
        "Reports progress; cancelled before the agents run, it ends the swarm again.",
        arguments=UpArguments,
        result=Status,
        run=_up,
        question="Start the swarm on this machine, with its NATS server at port {port}?",
    ),
    ToolSpec(
        name="swarm_down",
        title="End the swarm",
        description="Ends the swarm of the state directory in order: agents drain and save their state. Equal to "
        "`signalmesh down --json`.",
        arguments=ConfirmArguments,
        result=Ended,
        run=_down,
        question="End the whole swarm?",
    ),
)
