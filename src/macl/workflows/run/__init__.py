"""`macl run`: from a folder of scans to masks and a page, in a given time."""
