"""Overlay attach: kinds, leases, plans."""
