"""Written by ``tools/protos`` from ``zlayer_driver/wire/proto``; never edited."""
