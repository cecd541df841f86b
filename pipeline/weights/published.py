"""The published checkpoint of a network: by the table's address and hash, or by the library's own loader."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.host.user_cache import cache_folder
from pipeline.models import libraries
from pipeline.models.zoo import Design, Model
from pipeline.weights import downloads


def check(model: Model, where: str) -> None:
    """Raise ConfigError where a network's published file cannot be fetched, before any work.

    Args:
        where: the key or flag that says `auto`, for errors.
    """
    name = f"{model.library} {model.name}"
    if model.design is Design.INSTALLED:
        if not libraries.tags_of(model.library, model.name.partition(".")[0]):
            raise ConfigError(f"{where}: auto, but {model.library} publishes no weights of {model.name}; give a file")
        return
    if model.url is None:
        raise ConfigError(f"{where}: auto, but no published checkpoint of {name} is known; give a file")
    if model.sha256 is None:
        raise ConfigError(
            f"{where}: auto, but {model.url} ({name}) has no published sha256 to check a download by; download it by "
            "hand and give the file"
        )


def fetch(model: Model, where: str) -> Path:
    """Return the published checkpoint of a network, fetched if it is not in the cache; `where` as for `check`.

    Raises:
        ConfigError: the table has no address or no hash of it.
        DataError: it cannot be fetched, or is not what was published.
    """
    check(model, where)
    if model.design is Design.INSTALLED:
        return libraries.fetch(model.library, model.name, cache_folder() / model.library)
    assert model.url is not None and model.sha256 is not None
    return downloads.download(model.url, model.sha256, cache_folder() / model.library)


def is_fetched(model: Model) -> bool:
    """Tell whether the published checkpoint of a network is in the cache, without fetching it."""
    if model.design is Design.INSTALLED:
        return libraries.weights_file(model.library, model.name, cache_folder() / model.library).is_file()
    if model.url is None or model.sha256 is None:
        return False
    return downloads.is_there(model.url, model.sha256, cache_folder() / model.library)
