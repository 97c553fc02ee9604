"""Actions from outside: kill, restart, revive, and changes of the swarm."""
