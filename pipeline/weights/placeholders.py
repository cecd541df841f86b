"""What stands in a checkpoint for objects that are neither tensor, array nor plain data."""

from __future__ import annotations


class Placeholder:
    """Stands in for an object of any class: keeps its state and items, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.state: object = None
        self.items: dict[object, object] = {}

    def __new__(cls, *_: object, **__: object) -> Placeholder:
        made = super().__new__(cls)
        made.__init__()  # type: ignore[misc]  # unpickling creates objects without calling it
        return made

    def __call__(self, *_: object, **__: object) -> Placeholder:
        """Stand in for a function or class that the pickle makes at run time too, as cloudpickle does."""
        return Placeholder()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, _: object) -> None:
        """Take an item of a list or a set, which holds no named tensors."""

    add = append

    def extend(self, _: object) -> None:
        """Take items, as `append`."""
