"""What a run shows: step metrics, live views, trackers, figures and comparisons."""
