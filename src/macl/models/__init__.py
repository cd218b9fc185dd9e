"""Networks, one file each; the file name is the name users give."""
