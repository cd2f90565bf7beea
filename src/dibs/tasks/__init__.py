"""Tasks that need no download: problems, demonstrations and a policy warm-started on them."""
