"""tallow: raw text to a served, aligned, compressed language model on hardware that you already have."""

__version__ = "0.1.0"
