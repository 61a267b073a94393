"""The errors that cross modules, one per reaction of the caller.

WvaError
├── ConfigError    what the operator wrote is wrong: refuse it, keep what was good (exit 2)
├── CollectError   one source said nothing usable: go on without it
└── ClusterError   the cluster could not be read or told: try again next cycle
"""

from __future__ import annotations


class WvaError(Exception):
    """Anything this product raises on purpose; the message is fit to be shown to a person."""


class ConfigError(WvaError):
    """A setting, a flag or a file is wrong; the message names it and says what was expected."""


class CollectError(WvaError):
    """A source could not be read.

    Attributes:
        source: Who: a URL or a file's name.
        problem: What was found, in a few words: ``HTTP 503``, ``timed out after 2 s``.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source
        self.problem = problem


class ClusterError(WvaError):
    """The Kubernetes API could not be reached or refused; the message says which call."""
