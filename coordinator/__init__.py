"""The control plane: decisions, supervision and the command line.

cli/         The command line: arguments in, exit code out, no logic.
config/      swarm.toml and overrides into frozen settings.
decisions/   The coordinator agent: votes into decisions, with risk and size.
supervisor/  The watchdog: detects failures, restarts agents, elects its leader.
changes/     Changes of a swarm while it runs: what the leading watchdog does on request.
sandboxes/   Sandboxes at E2B: create, install, watch, replace, end.
runner/      `up` and `down`: the processes of a swarm on this machine.
monitor/     Read-only views: status, watch, live view, health, history.
control/     Actions from outside: kill, restart, revive, and changes of the swarm.
audit/       `audit`: is everything that was stored complete and in order?
explain/     `explain`: why was a decision made? Computed again from the stored messages.
replay/      `replay`: do the recorded inputs give the recorded outputs again?
chaos/       `chaos`: random faults on a running swarm.
certify/     `certify`: the acceptance run and its report.
doctor/      `doctor`: checks of everything a swarm needs, with remedies.
security/    Keys of processes, and the permissions that follow from the configuration.
dashboard/   The `dashboard` role: pages in a browser, live over the bus or over a mirror's file at rest.
mcp/         The `mcp` role: tools, resources and prompts for assistants, over a bus or a mirror's file at rest.
telemetry/   The `metrics` role: Prometheus page, OTLP push, alert webhook.
reporting/   Tables, percentiles, differences and findings that several commands print.
"""
