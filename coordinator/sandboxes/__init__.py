"""Sandboxes at E2B: create, install, watch, replace, end."""
