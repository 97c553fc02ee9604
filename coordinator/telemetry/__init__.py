"""The `metrics` role: Prometheus page, OTLP push, alert webhook."""
