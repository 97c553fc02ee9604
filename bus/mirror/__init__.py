"""The SQLite copy of the stream, and restoring a lost stream from it."""
