"""The only place that knows gRPC: go-plugin, Nomad messages, and an embedded host that speaks the client side."""

import os

# gRPC's core writes notes of ordinary goodbyes to stderr, past every logger; it reads its level once, before anything here is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
