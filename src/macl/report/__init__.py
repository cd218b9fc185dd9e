"""What a report shows: the facts of runs, charts and overlays as plain values, and the template that lays them out."""
