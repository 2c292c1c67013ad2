"""Videos with exact truth, made from a seed, and sentences that are true of them."""
