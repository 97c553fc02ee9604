"""Exactly-once publishing, fencing, leader election, and the records that outlive a process."""
