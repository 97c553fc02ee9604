"""What decides: synthesis and risk, the watchdog, the command line."""
