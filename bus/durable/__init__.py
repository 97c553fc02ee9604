"""Exactly-once publishing, fencing, and the records that outlive a process."""
