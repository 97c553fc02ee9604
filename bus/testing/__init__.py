"""An in-memory bus and a fault-injecting TCP proxy."""
