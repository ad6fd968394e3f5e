"""The only place that knows gRPC: go-plugin, Nomad messages, and an embedded host that speaks the client side."""
