"""The seeds' import path of the client: `from kitchensink.clients.http import Client`."""

from __future__ import annotations

from .._client import Client

__all__ = ["Client"]
