"""Tables, percentiles and findings that several commands print."""
