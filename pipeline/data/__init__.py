"""Images, labels and datalists: found, chosen, decoded, prepared."""
