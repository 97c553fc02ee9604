"""`doctor`: checks of everything a swarm needs, with remedies."""
