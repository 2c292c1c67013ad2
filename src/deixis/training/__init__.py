"""Recipes, the loop, the optimiser, checkpoints."""
