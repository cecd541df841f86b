"""Lines and progress bars for people."""
