"""The release of this package."""

from ._native import __version__ as version

__all__ = ["version"]
