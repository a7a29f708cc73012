"""Evaluation items that are in the text that a model is to be trained on."""
