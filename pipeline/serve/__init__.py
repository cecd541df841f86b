"""Serve: a package behind the Open Inference Protocol, over REST and gRPC."""
