"""The sandbox host: starts and ends agent processes where it runs."""
