"""Nomad as a place to run jobs: placement of batches, its HTTP API, and submission to it."""
