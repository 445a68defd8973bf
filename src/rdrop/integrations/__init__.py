"""R-Drop inside the training loops of others: one file for each host, each alone with its import."""
