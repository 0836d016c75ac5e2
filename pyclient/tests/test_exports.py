"""What the package announces is there, and has words to it."""

from __future__ import annotations

import inspect

import kitchensink
from kitchensink import errors


def test_exported_names():
    assert kitchensink.__all__ == sorted(kitchensink.__all__)
    assert kitchensink.__all__ == [
        "AsyncClient",
        "CatalogUnavailable",
        "Client",
        "ConnectionFailed",
        "ConnectionLost",
        "Executor",
        "Job",
        "JobCancelled",
        "JobTimeout",
        "JobUnknown",
        "KeyLost",
        "KitchenSinkError",
        "NestedTooDeep",
        "NodeLost",
        "NotAuthorized",
        "NotPlaceable",
        "NotRegistered",
        "NotSerializable",
        "PayloadError",
        "Placement",
        "Pool",
        "ProtocolError",
        "RPC",
        "RemoteData",
        "RemoteError",
        "TooManyJobs",
        "WorkerCrashed",
        "__version__",
        "client",
        "do",
        "dp",
        "dr",
        "du",
        "memoize",
        "register_serialization",
        "remote",
        "setup_client",
    ]
    for name in [*kitchensink.__all__, *errors.__all__]:
        assert hasattr(kitchensink, name) or hasattr(errors, name)


def test_every_public_name_has_a_docstring():
    for name in kitchensink.__all__:
        thing = getattr(kitchensink, name)
        if inspect.isclass(thing):
            assert thing.__doc__, name
            for attribute, member in vars(thing).items():
                if callable(member) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute}"


def test_the_seeds_names_are_there():
    for name in (
        "call",
        "result",
        "async_result",
        "bulk_call",
        "bc",
        "execute",
        "bulk_results",
        "br",
        "map",
        "cancel",
        "cancel_all",
        "hosts",
        "ping",
        "data_info",
        "bulk_async_result",
        "bulk_cancel",
        "call_single",
        "clone",
        "cs",
        "execute_local",
        "md5",
        "path_search",
        "pick_host",
    ):
        assert callable(getattr(kitchensink.Client, name))
