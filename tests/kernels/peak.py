"""Bytes that torch holds at the peak of a computation, counted by its profiler."""

from collections.abc import Callable

import torch


def peak_bytes(compute: Callable[[], object]) -> int:
    """Beyond what was held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
