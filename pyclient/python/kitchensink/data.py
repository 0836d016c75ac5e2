"""The seeds' import path of remote data: `from kitchensink.data import RemoteData, do, dp, dr, du`."""

from __future__ import annotations

from .remote_data import RemoteData, do, dp, dr, du

__all__ = ["RemoteData", "do", "dp", "dr", "du"]
