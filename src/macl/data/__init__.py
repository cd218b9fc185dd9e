"""Stores, splits, and the batches that are drawn from them."""
