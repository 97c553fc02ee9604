"""Processes, file locks, asyncio tasks, terminal escapes; no project imports but errors."""
