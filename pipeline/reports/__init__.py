"""HTML reports, each one self-contained file that loads nothing from the network."""
