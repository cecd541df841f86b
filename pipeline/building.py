"""Build: from a network and a folder of images to an int8 package. `stages/table.py` holds the data flow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts import MANIFEST, fingerprint, install, is_published, publish, read_manifest, verify
from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import WeightRounding
from pipeline.data import prepared
from pipeline.data.sample import SAMPLE_CLASSES
from pipeline.data.sources import scan
from pipeline.errors import ArtefactError, ConfigError, DataError
from pipeline.host.hardware import available_cores, release_memory
from pipeline.onnx_models.files import structure
from pipeline.prepare import frontends
from pipeline.prepare import inputs as build_inputs
from pipeline.proof import speed
from pipeline.quant.work import measure_network
from pipeline.runtimes.readers import computes_bfloat16
from pipeline.stages import figures
from pipeline.stages.artefact_names import FIGURES, MODEL, NOTES, read_notes
from pipeline.stages.costs import BuildWork, expected_seconds, guess_work
from pipeline.stages.settings import input_paths, settings_key
from pipeline.stages.table import STAGES, S, Stage
from pipeline.terminal import console
from pipeline.terminal.total_progress import TotalProgress, whole_work


@dataclass(frozen=True)
class Built:
    """The outcome of a build."""

    prefix: Path  # what `-m` takes
    seconds: float
    ran: tuple[str, ...]  # stages that were not up to date
    stages: Mapping[str, Path]  # where the artefact of each lies
    stage_seconds: Mapping[str, float]  # of those that ran

    def as_dict(self) -> dict[str, object]:
        """Return plain data."""
        return {
            "prefix": str(self.prefix),
            "seconds": round(self.seconds, 3),
            "ran": list(self.ran),
            "stages": {name: str(folder) for name, folder in self.stages.items()},
            "stage_seconds": {name: round(seconds, 3) for name, seconds in self.stage_seconds.items()},
        }


def check(cfg: BuildConfig) -> None:
    """Find every fault that can be known before any work starts.

    Raises:
        PipelineError: files are missing, sample and real data would mix, or something is not available.
    """
    cfg.check_inputs()
    try:
        frontends.check(cfg.frontend)
    except ConfigError as err:
        raise ConfigError(cfg.as_typed(str(err))) from err
    build_inputs.check_model(cfg)
    speed.budget_seconds()


def make_ready(cfg: BuildConfig) -> BuildConfig:
    """Return the build file as it is built, after finding every fault that can be known before any work.

    Where the file asks for fewer calibration images than there are classes, one of each class is taken, with a notice.

    Raises:
        PipelineError: as `check`; classes without images, or weights that cannot be read or do not fit.
    """
    return _make_ready(cfg)[0]


def _make_ready(cfg: BuildConfig) -> tuple[BuildConfig, dict[str, Path | None] | None]:
    """Return also what `_artefacts` finds; None where that takes a download."""
    check(cfg)
    cfg = build_inputs.settle_images(cfg)
    if frontends.is_to_be_fetched(cfg):
        return cfg, None
    found = _artefacts(frontends.fetch_weights(cfg))
    if found.get("export") is None:
        build_inputs.check_weights(cfg)
    return cfg, found


def build(cfg: BuildConfig, say: Callable[[str], None] = lambda line: None) -> Built:
    """Run each stage whose inputs changed, then put the package in the workspace.

    >>> built = pipeline.build(pipeline.load_build_file("flowers.yaml"))
    >>> built.prefix
    PosixPath('deploy_weights/flowers-int8-percentile-3_32_32-vacc/flowers')

    Args:
        cfg: the build file, of `load_build_file`.
        say: gets one line for each stage.

    Raises:
        PipelineError: something the user can fix; finished stages are kept, and nothing incomplete is left.
        TypeError: `cfg` is the path of a build file, or anything else.
    """
    if not isinstance(cfg, BuildConfig):
        raise TypeError(f"cfg: expected what load_build_file returns, got {type(cfg).__name__}")
    begun = time.perf_counter()
    told = len(cfg.notices)
    cfg, found = _make_ready(cfg)
    for notice in cfg.notices[told:]:
        say(f"note: {notice}")
    cfg = frontends.fetch_weights(cfg)  # so that a download fails before hours of other work
    ran: dict[str, float] = {}
    found = found or _artefacts(cfg)
    waiting = [name for name, folder in found.items() if folder is None]
    expected = expected_seconds(waiting, _work(cfg, found["export"])) if waiting else {}
    with whole_work(expected, "build") as whole, prepared.kept():
        while True:
            try:
                stages = _build(cfg, say, ran, whole)
            except _DamagedError as damaged:
                say(f"{damaged}; making it again")
                (damaged.folder / MANIFEST).unlink(missing_ok=True)
            else:
                prefix = cfg.workspace.path / cfg.package_name / cfg.name
                return Built(prefix, time.perf_counter() - begun, tuple(ran), stages, ran)


def _work(cfg: BuildConfig, exported: Path | None) -> BuildWork:
    """Return what a build has to do, as far as it is known: the exported model tells exactly what the network costs."""
    images = cfg.dataset.sampler.get_data_num
    evaluation = cfg.evaluation.num
    if evaluation is None:
        evaluation = len(scan(cfg.evaluation.path).files) if cfg.evaluation.path else SAMPLE_CLASSES // 2
    return BuildWork(
        network=measure_network(structure(exported / MODEL)) if exported else guess_work(cfg.frontend),
        images=images if cfg.uses_sample or cfg.dataset.path else 0,
        evaluation_images=evaluation,
        makes_weights=cfg.uses_sample,
        trial_s=speed.budget_seconds(),
        tuning_s=60 * cfg.accuracy.budget_minutes if cfg.accuracy else 0.0,
        cores=available_cores(),
        bfloat16=computes_bfloat16(),
        rounds=cfg.backend.quantize.weight_rounding is WeightRounding.SECOND_ORDER,
    )


class _DamagedError(Exception):
    """An artefact in the cache is not what its stage wrote."""

    def __init__(self, folder: Path, fault: ArtefactError) -> None:
        super().__init__(str(fault).partition(";")[0])
        self.folder = folder


def _build(
    cfg: BuildConfig, say: Callable[[str], None], ran: dict[str, float], whole: TotalProgress
) -> Mapping[str, Path]:
    """Run what is not up to date, adding to `ran`; return where the artefact of each stage lies.

    Raises:
        _DamagedError: an artefact of the cache was changed or damaged; raised before it is read.
    """
    workspace = cfg.workspace.path.absolute()
    rows = [stage for stage in STAGES if stage.when(cfg)]
    uncompared = {stage.name for stage in rows if not stage.compared}
    done: dict[str, Path] = {}
    sound: set[Path] = set()  # artefacts that were just made, or compared with their digests
    for number, stage in enumerate(rows, start=1):
        inputs = {name: done[name] for name in stage.needs if name in done}
        step = f"[{number}/{len(rows)}] {stage.name}"
        with _file_faults(step, workspace):
            settings = stage.settings(cfg)
            out = workspace / ".cache" / stage.name / _key(stage, settings, inputs)
        console.detail(f"{step}: {out}")
        if is_published(out):
            say(f"{step}: up to date")
        else:
            read = [folder for name, folder in inputs.items() if name not in uncompared]
            with _file_faults(step, workspace):
                _compare(read, sound)
            with whole.step(stage.name, step), _file_faults(step, out):
                ran[stage.name] = _run_stage(stage, settings, inputs, out)
            if stage.shows_work:
                whole.expect(expected_seconds((row.name for row in rows[number:]), _work(cfg, out)))
            left = "" if number == len(rows) else f"; {whole.left()}"
            say(f"{step}: {', '.join([f'{ran[stage.name]:.1f} s', *figures.describe(out)])}{left}")
            sound.add(out)
        for line in read_notes(out):
            say(f"note: {line}")
        done[stage.name] = out
    target = workspace / cfg.package_name
    with _file_faults("install", target):
        _compare([done["package"]], sound)
        install(done["package"], target)
    return done


def _run_stage(stage: Stage[S], settings: S, inputs: Mapping[str, Path], out: Path) -> float:
    """Make the artefact of a stage; return the seconds it took."""
    started = time.perf_counter()
    with publish(out, producer=stage.name, keep_partial=stage.keep_partial) as scratch:
        if not is_published(out):  # else another build made it while this one waited for the lock
            stage.run(settings, inputs, scratch)
            if _key(stage, settings, inputs) != out.name:  # the artefact would stand for what was there before
                raise DataError(f"{input_paths(settings)}: changed while {stage.name} read them; build again")
    release_memory()  # or the next stage would have it on top of its own
    return time.perf_counter() - started


def _compare(folders: Iterable[Path], sound: set[Path]) -> None:
    """Compare artefacts with their digests, except those in `sound`, and add them to `sound`."""
    for folder in folders:
        if folder not in sound:
            try:
                verify(folder)
            except ArtefactError as err:
                raise _DamagedError(folder, err) from err
            sound.add(folder)


def plan(cfg: BuildConfig) -> list[str]:
    """Return for each stage a line that says whether a build would run it. Nothing is computed, fetched or written.

    Raises:
        PipelineError: as `check`, or files that a build would read are missing.
    """
    cfg = make_ready(cfg)
    if not frontends.is_to_be_fetched(cfg):
        cfg = frontends.fetch_weights(cfg)
    rows = {stage.name: stage for stage in STAGES if stage.when(cfg)}
    lines = []
    for number, (name, out) in enumerate(_artefacts(cfg).items(), start=1):
        does = "up to date" if out else "fetches the checkpoint and runs" if rows[name].fetches(cfg) else "runs"
        lines.append(f"[{number}/{len(rows)}] {name}: {does}")
    return [*lines, f"package {cfg.workspace.path / cfg.package_name / cfg.name}"]


def _artefacts(cfg: BuildConfig) -> dict[str, Path | None]:
    """Return the finished artefact of each stage of a build, by the stage's name; None where the stage has to run."""
    rows = [stage for stage in STAGES if stage.when(cfg)]
    done: dict[str, Path | None] = {}
    for number, stage in enumerate(rows, start=1):
        needed = {name: done[name] for name in stage.needs if name in done}
        known = {name: folder for name, folder in needed.items() if folder is not None}
        out = None
        if len(known) == len(needed) and not stage.fetches(cfg):
            with _file_faults(f"[{number}/{len(rows)}] {stage.name}", cfg.workspace.path.absolute()):
                key = _key(stage, stage.settings(cfg), known)
            address = cfg.workspace.path.absolute() / ".cache" / stage.name / key
            out = address if is_published(address) else None
        done[stage.name] = out
    return done


def _key(stage: Stage[S], settings: S, inputs: Mapping[str, Path]) -> str:
    """Return the name of a stage's artefact, by everything that its content depends on."""
    upstream = {name: _content(folder) for name, folder in inputs.items()}
    return fingerprint(stage.name, stage.version, settings_key(settings), upstream)


@contextmanager
def _file_faults(step: str, where: Path) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into an error of the user's."""
    try:
        yield
    except OSError as err:
        # Libraries write temporary files too, without naming them in the error.
        place = err.filename or f"{where}, or {tempfile.gettempdir()}"
        raise DataError(f"{step}: {place}: {err.strerror or err}; fix it and build again") from err


def _content(folder: Path) -> dict[str, str]:
    """Return the digests of an artefact's files, without measured times and lines for people."""
    files = read_manifest(folder)["files"]
    return {name: entry["sha256"] for name, entry in files.items() if Path(name).name not in (FIGURES, NOTES)}
