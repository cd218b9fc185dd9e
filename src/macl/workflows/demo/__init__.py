"""`macl demo`: the whole path on synthetic subjects."""
