"""The float32 model's answers to the images of a run, the reference for a package's answers."""

from __future__ import annotations

from pipeline.artefacts import file_digest, fingerprint
from pipeline.config.vdsp import spec_from_vdsp_dict
from pipeline.errors import DataError
from pipeline.host.hardware import available_cores
from pipeline.packages.package import Package
from pipeline.run import results
from pipeline.run.plan import Entry, Plan
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose

_BATCH = 8
_UNASKED = 2000  # images that float32 is run on without --reference: minutes, not hours


def find_reference(
    package: Package, run: results.Run, wanted: bool | None, notes: list[str]
) -> tuple[Entry, ...] | None:
    """Return the float32 model's results for the images of a run, computing those that are not there yet.

    They are kept in the build's workspace, so comparing another int8 model of the same network costs nothing more.

    Args:
        wanted: None: unless there are many images to compute.
        notes: gets a line where there is no reference.

    Returns:
        None where there is none and it is not wanted in any case.

    Raises:
        DataError: it is wanted, and the model or an image is not here.
    """
    model = package.workspace_file("float32_model")
    if model is None:
        if wanted:
            raise DataError(f"--reference: the float32 model of {package.prefix} is not here; build it on this machine")
        notes.append("float32 not compared: the build's float32 model is not on this machine")
        return None
    spec = spec_from_vdsp_dict(run.facts["preprocess"], str(run.facts["package"]))
    images = [entry.image for entry in run.entries]
    gone = [image for image in images if not image.is_file()]
    if gone:
        if wanted:
            raise DataError(f"--reference: {len(gone)} of {len(images)} images are gone (first: {gone[0]})")
        notes.append(f"float32 not compared: {len(gone)} of {len(images)} images are gone (first: {gone[0]})")
        return None
    plan = Plan(model, choose(Runtime.AUTO), spec, batch=_BATCH, instances=available_cores())
    facts = {
        "float32_model_sha256": file_digest(model),
        "runtime": plan.runtime.value,
        "preprocess": run.facts["preprocess"],
    }
    folder = model.parents[2] / "reference" / fingerprint(facts, list(map(str, images)))
    if not results.is_finished(folder, facts, images):
        if wanted is None and len(images) > _UNASKED:
            notes.append(f"float32 not compared: {len(images)} images take a while; add --reference")
            return None
        results.write_results(plan, facts, images, folder, "float32 reference")
    return results.read_run(folder, images).entries
