"""Documents that are nearly the same: found by MinHash, verified by what they share, one of each cluster kept."""
