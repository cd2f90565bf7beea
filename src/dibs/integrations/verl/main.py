"""verl's ``main_ppo`` with a block of ``dibs.*`` keys. docs/integrations.md describes the keys.

::

    python -m dibs.integrations.verl.main VERL_ARGUMENTS... dibs.allocator=min_variance
"""

from __future__ import annotations

import sys
from typing import NoReturn

from dibs.integrations.requirement import require
from dibs.types import InputError


def main() -> None:
    """Train. For input that cannot be used, print one line and exit with status 2."""
    try:
        require("verl", "0.9", "0.10", module="verl.trainer.ppo.v1")
    except ImportError as error:
        _stop(error)
    from dibs.integrations.verl.launch import launch

    try:
        launch(sys.argv[1:])
    except InputError as error:
        _stop(error)


def _stop(error: Exception) -> NoReturn:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
