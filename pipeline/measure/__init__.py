"""Measurements of a package: speed, accuracy, and where accuracy is lost."""
