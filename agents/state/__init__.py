"""The State of an agent as JSON and back, exactly."""
