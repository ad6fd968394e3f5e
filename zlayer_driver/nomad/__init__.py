"""Nomad as a place to run jobs: placement, and later its HTTP API."""
