"""How good texts are: scores beside the documents, by which others decide."""
