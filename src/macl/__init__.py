"""macl: from unlabelled medical scans and a handful of labelled ones to a segmentation model."""

__version__ = "0.1.0"
