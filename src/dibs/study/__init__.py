"""``dibs compare``: arms of an experiment side by side, at equal optimizer updates, pilots counted."""
