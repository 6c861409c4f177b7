"""One Ray for all tests of a module, so that it is not started again between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_ray_with(**settings: Any) -> Iterator[None]:
    """Starts Ray with the (nominal) CPUs that the settings of the section `ray` need, and ends it."""
    import ray

    from rlprompt.cluster import RayConfig
    from rlprompt.ray_session import start_ray

    ray.shutdown()
    start_ray(RayConfig(**settings))
    yield
    ray.shutdown()
