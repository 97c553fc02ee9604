"""The life of one agent process: claim, restore, replay, run, drain."""
