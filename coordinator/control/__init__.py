"""Actions on one agent from outside: kill, restart, revive."""
