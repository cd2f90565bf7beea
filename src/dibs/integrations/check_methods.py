"""Which methods of a trainer a plug-in overrides, and whether the trainer still has them.

These methods are not the trainer's public interface. If a release renamed one, the plug-in's override
would never be called and nothing would fail. This module imports no trainer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from dibs.types import InputError


@dataclass(frozen=True)
class TrainerHooks:
    """The methods that a plug-in relies on.

    Args:
        package: name of the trainer's package.
        title: how messages name the package.
        plug_in: how messages name the plug-in.
        tested: version that the plug-in was tested with.
        methods: by method name, the parameters after ``self`` that are relied on, in order.
    """

    package: str
    title: str
    plug_in: str
    tested: str
    methods: Mapping[str, tuple[str, ...]]

    def check(self, trainer: type) -> None:
        """Raise InputError unless the class has all methods, with their parameters."""
        for name, wanted in self.methods.items():
            method = getattr(trainer, name, None)
            found = () if method is None else tuple(inspect.signature(method).parameters)[1:]
            if method is None or found[: len(wanted)] != wanted:
                raise self.untested_version(
                    f"{trainer.__name__} has no {name}({', '.join((*wanted, '...'))})"
                )

    def untested_version(self, what: str) -> InputError:
        """Make the error for an installed version that lacks ``what`` the plug-in needs."""
        return InputError(
            f"{self.title} {version(self.package)}: {what}, on which {self.plug_in} relies; install a "
            f"{self.title} it was tested with: pip install '{self.package}=={self.tested}'"
        )
