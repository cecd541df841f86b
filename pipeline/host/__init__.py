"""This machine: its CPU, its processes, its cache folder, and clusters of several."""
