"""Logs and OpenTelemetry spans of any process."""
