"""One NATS connection and JetStream, behind the `Bus` interface."""
