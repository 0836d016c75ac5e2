"""The seeds' way to start a node: `python -m kitchensink.scripts.start`."""
