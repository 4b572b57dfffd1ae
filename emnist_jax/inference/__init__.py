"""A trained network: load it, ask it, examine it, export it."""
