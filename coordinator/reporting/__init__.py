"""Tables, percentiles, differences and findings that several commands print."""
