"""Which documents are good: published rules, a classifier that the user trains, and perplexity."""
