"""The bus: messages, subjects, connections, outbox, reader, snapshots. It knows no trading and imports no agents."""

__version__ = "0.1.0"
