"""The steps of preparation: each takes parts of documents, or columns beside them, and gives others."""
