"""Published quality rules: metrics beside each document first, thresholds on these columns afterwards."""
