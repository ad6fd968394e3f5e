"""zlayer-driver: a Nomad task driver that decides from local knowledge where each container runs."""

__version__ = "0.1.0"
