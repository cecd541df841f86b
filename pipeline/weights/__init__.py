"""Checkpoints: recognised by content, downloaded, read without executing anything in them, matched to a network."""
