"""Checkpoints: recognized by content, downloaded, read without running what they hold, matched to a network."""
