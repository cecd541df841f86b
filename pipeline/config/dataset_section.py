"""Section `dataset:` of a build file, with the preprocessing that it describes in one spelling or in both."""

from __future__ import annotations

from dataclasses import replace

from pipeline.config.choices import Frontend, Precision, PreprocessAs
from pipeline.config.documents import find_file, shown_path
from pipeline.config.image_sections import DatasetConfig
from pipeline.config.keys import read_keys
from pipeline.config.process_ops import ProcessOps, custom_op, read_process_ops, spec_from_process_ops
from pipeline.config.published import recorded_preprocess
from pipeline.config.schema import Fault, Section
from pipeline.config.sections import AUTO, BackendConfig, FrontendConfig
from pipeline.config.spec_comparison import describe, difference
from pipeline.config.vdsp import FOLDER, PreprocessSpec, read_vdsp
from pipeline.errors import ConfigError

_OF_PADDLE = (Frontend.PADDLECLAS, Frontend.PADDLE)  # inference models are PaddleClas's, too
_NO_PREPROCESS = "missing, and vdsp_params too; give one (as in --set dataset.vdsp_params=FILE)"


def read_dataset(
    section: Section, frontend: FrontendConfig, backend: BackendConfig
) -> tuple[DatasetConfig, PreprocessSpec | Fault | None]:
    """The section and the preprocessing; a Fault where only a build has to refuse it, None after a fault."""
    ops_key = _spelling(section)
    custom = custom_op(section, ops_key)
    ops = read_process_ops(section, ops_key) if custom is None else None
    values = read_keys(DatasetConfig, section)
    values["process_ops"] = tuple(item.values for item in section.sections(ops_key)) if ops or custom else ()
    config = DatasetConfig(**values)
    said = config.preprocess_as
    usual = PreprocessAs.PADDLECLAS if frontend.type in _OF_PADDLE else PreprocessAs.TORCHVISION
    described: PreprocessSpec | Fault | None
    described = _resolve_preprocess(section, ops_key, ops, config.vdsp_params, frontend.chw[1:], said or usual)
    found = described.preprocess_as if described is not None else said or usual  # a vdsp file may say it too
    if said not in (None, found):
        section.fault(
            "preprocess_as",
            f"{said.value} here, and {config.vdsp_params} says {found.value}; expected the same in both",
        )
    config = replace(config, preprocess_as=found)
    missing = config.vdsp_params is None and not section.values.get(ops_key)
    recorded = recorded_preprocess(frontend.type.value, frontend.model) if frontend.checkpoint == AUTO else None
    if missing and recorded is not None:
        described = replace(recorded, preprocess_as=found)
        section.document.notices.append(
            f"preprocessing as recorded with the published checkpoint: {describe(recorded)}"
        )
    elif missing and backend.dtype is Precision.INT8:
        section.fault(ops_key, _NO_PREPROCESS)
    elif missing:  # the vendor's files of float packages leave it to the runner's flag
        described = section.document.at((*section.key, ops_key), _NO_PREPROCESS)
    elif custom is not None and config.vdsp_params is None:
        described = custom
    elif custom is not None:
        name = custom.key.removesuffix(".type")
        section.document.notices.append(f"{name} (CustomFunc) has no effect here: vdsp_params says it all")
    section.done()
    return config, described


def _spelling(section: Section) -> str:
    """Return the key that the ops stand under."""
    found = section.spelling("process_ops", "transform_ops")
    if found is None:
        section.take("transform_ops")
        section.fault("transform_ops", "another spelling of process_ops, and both are given; expected one of them")
    return found or "process_ops"


def _resolve_preprocess(
    dataset: Section,
    ops_key: str,
    ops: ProcessOps | None,
    vdsp_params: str | None,
    input_hw: tuple[int, int],
    preprocess_as: PreprocessAs,
) -> PreprocessSpec | None:
    """The one preprocessing that the vdsp file and the ops describe. None where there is neither, or after a fault.

    Args:
        preprocess_as: whose arithmetic it is, unless the vdsp file says.
    """
    if vdsp_params is None:
        return None if ops is None else spec_from_process_ops(ops, preprocess_as)
    try:
        path = find_file(vdsp_params, FOLDER)
        spec, faults = read_vdsp(path, input_hw, preprocess_as)
    except ConfigError as error:
        dataset.fault("vdsp_params", str(error))
        return None
    dataset.document.faults.extend(faults)
    if spec is not None and ops is not None:
        differs = difference(spec_from_process_ops(ops, spec.preprocess_as, spec.filter), spec)
        if differs:
            dataset.fault(ops_key, f"disagrees with {shown_path(path)}: {differs}")
    return spec
