"""Things that a recipe calls by name."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from iris_ray.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one setting; other packages may add theirs."""

    def __init__(self, setting: str, what: str):
        self.setting = setting
        self.what = what
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: makes what it stands above available under `name`."""

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Raises `ConfigError` naming what exists if there is no such entry."""
        if name not in self._entries:
            listed = ", ".join(sorted(self._entries)) or "none"
            raise ConfigError(f"{self.setting}: {name!r} does not exist. {self.what}: {listed}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def discard(self, name: str) -> None:
        """Take `name` out again."""
        self._entries.pop(name, None)
