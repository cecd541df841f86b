"""Serve: a package behind the Open Inference Protocol, over REST and gRPC."""

from __future__ import annotations

import os

# gRPC's C library also prints errors to standard error, beside raising them. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
