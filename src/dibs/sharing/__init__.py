"""Take the result of a run to where others find it."""
