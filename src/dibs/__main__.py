"""``python -m dibs``."""

from dibs.cli import main

raise SystemExit(main())
