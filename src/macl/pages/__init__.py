"""The contents of the pages of a report and a benchmark as plain values, and their templates."""
