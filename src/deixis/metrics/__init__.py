"""Measures of masks and of presence, and the evaluation of results on disk."""
