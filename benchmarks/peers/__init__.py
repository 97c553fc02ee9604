"""The pipeline of the swarm in other software: a program for each peer, run by an environment of its own."""
