"""Containers under conmon, which outlives the driver: what the backends stand on that run their containers so.

A backend gives the `steps` by which a container of its own is made and the `runtime` that conmon calls; `backend.Supervised` has the rest.
"""
