"""The inside of a VM and the way to it: the agent (C, init of the guest), the frames it speaks, and the monitor that keeps a VM company.

::

    backend ── unix socket ── monitor ── virtio-serial ── agent ── the container's processes

The monitor is what the backend's supervisor takes for the container: it holds the log ends, passes signals on, and ends as the
container's process did.
"""
