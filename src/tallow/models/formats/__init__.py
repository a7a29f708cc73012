"""Reading and writing models: hub directories and GGUF files."""
