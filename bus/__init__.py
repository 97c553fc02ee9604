"""Messages, NATS, exactly-once storage, the mirror. Contains no trading and no agents.

messages/       Payload types, their encoding and checks: the public names of `payloads` and `codec`.
nats/           One NATS connection and JetStream, behind the `Bus` interface.
server/         The embedded nats-server process.
durable/        Exactly-once publishing, fencing, leader election, and the records that outlive a process.
mirror/         The SQLite copy of the stream, and restoring a lost stream from it.
observability/  Logs and OpenTelemetry spans of any process.
testing/        An in-memory bus and a fault-injecting TCP proxy.
utils/          Processes, file locks, asyncio tasks, terminal escapes; no project imports but errors.
errors          Every error, with its exit code.
heartbeats      Publishing heartbeats, and the listener that keeps the newest of each process.
interface       The `Bus` protocol that the NATS bus and the in-memory bus implement.
"""

__version__ = "0.1.0"
