"""Operations that have fast versions, and the machine's limits.

Nothing outside this room knows which version of an operation ran. Nothing is imported here: what runs a packed model
does without torch, which takes longer to import than such a model to load.
"""
