"""Ties a check to the traits that call for it."""

from collections.abc import Callable

from momentax.testing._traits import Traits


def when(applies: Callable[[Traits], bool]):
    """Generates the decorated check only for transformations whose traits satisfy `applies`."""

    def mark(check):
        check.applies = applies
        return check

    return mark
