"""Serve: a package behind the Open Inference Protocol, over REST and gRPC."""

from __future__ import annotations

import os

# gRPC's C library writes faults to standard error by itself, beside raising them. It looks when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
