"""The path, one verb per file; stages meet only through files on disk."""
