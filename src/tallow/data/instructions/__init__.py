"""Conversations, preferences and judged answers, in the spellings in which such sets are published."""
