"""The `dashboard` role: pages in a browser, live over the bus or over a mirror's file at rest."""
