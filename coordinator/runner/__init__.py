"""`up` and `down`: the processes of a swarm on this machine."""
