"""``dibs compare``: compare arms at equal optimizer updates, with pilots counted."""
