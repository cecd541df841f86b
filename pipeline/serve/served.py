"""The models that are served, by name and version, as KServe's parts see them."""

from __future__ import annotations

import time
from typing import Any

from pipeline.serve.kserve import (
    PREDICT_HIST_TIME,
    DataPlane,
    InferRequest,
    Model,
    ModelNotFound,
    ModelRepository,
    Unimplemented,
)
from pipeline.serve.model import PackageModel
from pipeline.serve.outputs import Answer
from pipeline.version import NAME, version

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")


class VersionNotFound(ModelNotFound):  # type: ignore[misc]  # KServe has no types
    """A request names a version of the model that is not served."""

    def __init__(self, name: str, wanted: str, known: list[str]) -> None:
        super().__init__(name)
        self.reason = f"model {name!r} has no version {wanted!r:.80}; it has version {', '.join(known)}"


class Versions(Model):  # type: ignore[misc]
    """One name, and the versions of it that are loaded. A request without a version gets the newest."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.loaded: dict[str, PackageModel] = {}  # by version, oldest first
        self.ready = True

    def get(self, wanted: str | None) -> PackageModel:
        """Return the version that a request names, or the newest.

        Raises:
            VersionNotFound: it is not loaded.
        """
        if not wanted:
            return next(reversed(self.loaded.values()))
        if wanted not in self.loaded:
            raise VersionNotFound(self.name, wanted, list(self.loaded))
        return self.loaded[wanted]

    def put(self, model: PackageModel) -> PackageModel | None:
        """Start serving a version; return the one that it replaces."""
        before = self.loaded.get(model.version)
        known = {**self.loaded, model.version: model}
        self.loaded = dict(sorted(known.items(), key=lambda each: int(each[0])))
        return before

    def get_input_types(self) -> list[dict[str, Any]]:
        return self.get(None).get_input_types()

    def get_output_types(self) -> list[dict[str, Any]]:
        return self.get(None).get_output_types()


class Plane(DataPlane):  # type: ignore[misc]
    """KServe's answers about the server and its models, for this server."""

    def __init__(self) -> None:
        super().__init__(ModelRepository())
        self.stopping = False

    @property
    def models(self) -> dict[str, Versions]:
        """What is served, by name."""
        found: dict[str, Versions] = self.model_registry.get_models()
        return found

    @property
    def loaded(self) -> list[PackageModel]:
        """Every version of every model."""
        return [model for name in sorted(self.models) for model in self.models[name].loaded.values()]

    def find(self, name: str, wanted: str | None) -> PackageModel:
        """Return a model of a version, or of the newest.

        Raises:
            ModelNotFound, VersionNotFound: it is not served.
        """
        if name not in self.models:
            raise ModelNotFound(name)
        return self.models[name].get(wanted)

    def put(self, model: PackageModel) -> PackageModel | None:
        """Start serving a model; return the one that it replaces."""
        if model.name not in self.models:
            self.model_registry.update(Versions(model.name))
        return self.models[model.name].put(model)

    def remove(self, model: PackageModel) -> None:
        """Stop serving a model."""
        versions = self.models[model.name]
        if versions.loaded.get(model.version) is model:
            versions.loaded = {key: each for key, each in versions.loaded.items() if each is not model}
        if not versions.loaded:
            del self.models[model.name]

    def metadata(self) -> dict[str, Any]:
        """Return the server's name, version and protocol extensions."""
        return {"name": NAME, "version": version(), "extensions": list(EXTENSIONS)}

    async def ready(self) -> bool:
        return not self.stopping and bool(self.models)

    async def infer(self, model_name: str, request: InferRequest) -> Answer:
        """Answer one request, without the steps before and after `predict` that KServe has and a package has not.

        Raises:
            ModelNotFound, VersionNotFound: it is not served; else as `PackageModel.predict`.
        """
        model, begun = self.find(model_name, request.model_version), time.perf_counter()
        try:
            return await model.predict(request)
        finally:
            PREDICT_HIST_TIME.labels(model_name).observe(time.perf_counter() - begun)

    async def model_metadata(self, model_name: str, model_version: str | None = None) -> dict[str, Any]:
        model = self.find(model_name, model_version)
        return {
            "name": model_name,
            "versions": list(self.models[model_name].loaded),
            "platform": model.platform,
            "inputs": model.get_input_types(),
            "outputs": model.get_output_types(),
        }


class NoRepository:
    """Refuses every request of a client to load or unload a model."""

    async def load(self, model_name: str) -> None:
        raise Unimplemented("models are neither loaded nor unloaded by clients")

    unload = load
