"""Keys of processes, and the permissions that follow from the configuration."""
