"""Doors to the machine: processes, mounts, cgroups, FIFOs, netlink. Privileged calls live here and nowhere else."""
