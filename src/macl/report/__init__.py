"""The contents of a report as plain values, and the template that lays them out."""
