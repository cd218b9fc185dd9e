"""Scans in, stores, splits and batches."""
