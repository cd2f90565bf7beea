"""verl's ``main_ppo`` with a ``dibs.*`` block. See docs/integrations.md.

::

    python -m dibs.integrations.verl.main VERL_ARGUMENTS... dibs.allocator=min_variance
"""

from __future__ import annotations

import sys

from dibs.integrations.verl.versions import require_verl
from dibs.types import InputError


def main() -> None:
    """Train; exits with status 2 and one line on input that cannot be used."""
    try:
        require_verl()
        from dibs.integrations.verl.launch import launch

        launch(sys.argv[1:])
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
