"""The lazy table of backends."""
