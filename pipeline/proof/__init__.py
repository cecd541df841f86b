"""Checks that a package answers as float32 does, in every runtime of this machine, and how fast."""
