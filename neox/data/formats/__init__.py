"""Kinds of files that a corpus may be made of."""
