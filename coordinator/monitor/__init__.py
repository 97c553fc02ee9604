"""Read-only views: status, watch, live view, health, history."""
