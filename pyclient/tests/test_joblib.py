"""joblib's Parallel on the workers."""

from __future__ import annotations

import time

import pytest
from fake_node import until

joblib = pytest.importorskip("joblib")

import kitchensink.joblib  # noqa: E402, F401
from kitchensink import setup_client  # noqa: E402


@pytest.fixture
def process_client(node):
    with setup_client(node.socket) as made:
        yield made


def square(x):
    return x * x


def boom(x):
    if x == 3:
        raise LookupError("three")
    time.sleep(0.05)
    return x


def test_parallel(process_client, node):
    before = len(node.calls)
    with joblib.parallel_backend("kitchensink", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(200)) == [x * x for x in range(200)]
        generator = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(square)(x) for x in range(20))
        assert sorted(generator) == sorted(x * x for x in range(20))
    assert len(node.calls) > before and node.calls[-1]["name"] == "_run_batch"


def test_what_a_call_raises_ends_the_parallel(process_client, node):
    with joblib.parallel_backend("kitchensink", n_jobs=2), pytest.raises(LookupError, match="three"):
        joblib.Parallel(batch_size=1)(joblib.delayed(boom)(x) for x in range(100))
    until(lambda: not node.going)


def test_options(process_client, node):
    with joblib.parallel_config("kitchensink", n_jobs=2, _priority=5):
        assert joblib.Parallel()([joblib.delayed(square)(2)]) == [4]
    assert node.calls[-1]["priority"] == 5
    with pytest.raises(TypeError, match="colour: not an option"), joblib.parallel_config("kitchensink", colour="red"):
        pass


def test_nested_parallels_stay_in_the_call(process_client, node):
    def outer(x):
        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(x + y) for y in range(3)))

    with joblib.parallel_backend("kitchensink", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(outer)(x) for x in range(4)) == [5, 14, 29, 50]
