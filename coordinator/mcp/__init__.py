"""The `mcp` role: tools, resources and prompts for assistants, over a bus or a mirror's file at rest."""
