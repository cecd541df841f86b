"""Images in, answers out: throughput, results files, predictions."""
