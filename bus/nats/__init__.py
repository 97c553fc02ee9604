"""One NATS connection and JetStream, behind the `Bus` interface."""

from bus.nats import lazy_aiohttp as lazy_aiohttp  # before any other module of the package imports nats
