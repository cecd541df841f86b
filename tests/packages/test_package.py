from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper
from run_fixtures import CLASS_IDS, FOLDER, NAME, SPEC, TinyWorkspace, float32_model, write_package

from pipeline.artefacts import write_json, write_manifest
from pipeline.config.vdsp import PreprocessSpec
from pipeline.errors import ArtefactError, DataError
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import check_fits, open_package


def test_open_package_reads_what_build_wrote(in_workspace: TinyWorkspace) -> None:
    package = open_package(in_workspace.prefix)
    assert (package.name, package.input_chw, package.uses_sample) == (NAME, (3, 32, 32), True)
    assert package.prefix == in_workspace.prefix
    assert package.model.is_file()
    assert package.preprocess() == SPEC
    assert tuple(known.id for known in package.classes()) == CLASS_IDS
    assert len(package.digest) == 64


@pytest.mark.parametrize(
    "prefix",
    [
        f"{FOLDER}/{NAME}",
        f"./{FOLDER}/{NAME}",
        FOLDER,
        f"{FOLDER}/",
        f"deploy_weights/{FOLDER}/{NAME}",
        f"./deploy_weights/{FOLDER}/",
        None,
    ],
)
def test_open_package_finds_it_from_the_current_folder_and_in_deploy_weights(
    in_workspace: TinyWorkspace, prefix: str | None
) -> None:
    package = open_package(None if prefix is None else Path(prefix))
    assert package.folder.resolve() == in_workspace.folder.resolve()


@pytest.mark.parametrize("prefix", [NAME, f"./{NAME}"])
def test_open_package_takes_the_name_alone_inside_the_folder(
    in_workspace: TinyWorkspace, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.chdir(in_workspace.folder)
    assert open_package(Path(prefix)).model.is_file()


def test_open_package_prefers_the_current_folder_to_deploy_weights(in_workspace: TinyWorkspace) -> None:
    write_package(in_workspace.root / FOLDER, float32_model(seed=3))
    assert open_package(Path(FOLDER) / NAME).folder == Path(FOLDER)


def test_open_package_takes_the_one_built_last(in_workspace: TinyWorkspace) -> None:
    older = in_workspace.deploy / f"a{FOLDER}"
    shutil.copytree(in_workspace.folder, older)
    os.utime(older / "manifest.json", (1, 1))
    (in_workspace.deploy / f"z{FOLDER}").mkdir()  # no manifest: not a package
    assert open_package(None).folder.name == FOLDER


def test_open_package_works_where_the_folder_was_moved_to(in_workspace: TinyWorkspace, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "a name of one's own"
    shutil.copytree(in_workspace.folder, moved)
    package = open_package(moved / NAME)
    assert package.workspace_file("float32_model") is None
    assert package.workspace_file("no such key") is None
    assert open_package(moved).digest == package.digest
    assert open_package(in_workspace.prefix).workspace_file("float32_model") == in_workspace.float32_model.resolve()


def test_open_package_names_the_packages_there_are(in_workspace: TinyWorkspace) -> None:
    with pytest.raises(ArtefactError) as raised:
        open_package(Path("resnet/resnet"))
    text = f"-m resnet/resnet: no package there; packages in deploy_weights/: deploy_weights/{FOLDER}"
    assert str(raised.value) == text


def test_open_package_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtefactError) as raised:
        open_package(None)
    assert str(raised.value) == (
        "no package in deploy_weights/; build one (python -m pipeline build timm_wideres.yaml) or give -m folder/name"
    )
    with pytest.raises(ArtefactError, match=r"-m x: no package there; packages in deploy_weights/: none"):
        open_package(Path("x"))
    assert list(tmp_path.iterdir()) == []


def test_open_package_gives_the_right_prefix_for_a_wrong_name(in_workspace: TinyWorkspace) -> None:
    with pytest.raises(ArtefactError) as raised:
        open_package(in_workspace.folder / "resnet18")
    assert str(raised.value) == (
        f"-m {in_workspace.folder}/resnet18: {in_workspace.folder} holds the model 'tiny'; give {in_workspace.prefix}"
    )


@pytest.mark.parametrize("name", [f"{NAME}.onnx", "classes.tsv", "preprocess.json", "package.json"])
def test_open_package_names_the_file_with_a_changed_byte(in_workspace: TinyWorkspace, name: str) -> None:
    path = in_workspace.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError) as raised:
        open_package(in_workspace.prefix)
    assert str(raised.value) == f"{path}: changed since the build (sha256 differs); run the build again"


def test_open_package_names_a_missing_file(in_workspace: TinyWorkspace) -> None:
    (in_workspace.folder / "classes.tsv").unlink()
    with pytest.raises(ArtefactError, match=r"classes\.tsv: missing; run the build again, or copy the package folder"):
        open_package(in_workspace.prefix)


def _forget_a_fact(folder: Path) -> str:
    facts = json.loads((folder / "package.json").read_text())
    del facts["input"]
    write_json(folder / "package.json", facts)
    return "not a whole package, it has no input; run the build again"


def _forget_the_model(folder: Path) -> str:
    (folder / f"{NAME}.onnx").unlink()
    return f"not a whole package, it has no {NAME}.onnx; run the build again"


def _forget_the_facts(folder: Path) -> str:
    (folder / "package.json").unlink()
    return "not a package, it has no package.json; give -m folder/name of one that build made"


@pytest.mark.parametrize("spoil", [_forget_a_fact, _forget_the_model, _forget_the_facts])
def test_open_package_refuses_another_artefact(in_workspace: TinyWorkspace, spoil: Callable[[Path], str]) -> None:
    text = spoil(in_workspace.folder)
    write_manifest(in_workspace.folder, "someone")
    with pytest.raises(ArtefactError) as raised:
        open_package(in_workspace.prefix)
    assert str(raised.value) == f"{in_workspace.folder}: {text}"


def test_check_fits_names_both_sizes(in_workspace: TinyWorkspace) -> None:
    package = open_package(in_workspace.prefix)
    check_fits(package, SPEC, "a.json")
    other = PreprocessSpec(**{**vars(SPEC), "crop_hw": (30, 32)})
    with pytest.raises(DataError) as raised:
        check_fits(package, other, "a.json")
    assert str(raised.value) == (
        f"a.json: prepares images of 30x32, but {package.prefix} takes 32x32; "
        "leave --vdsp_params out (the package has its own), or build the package with a frontend.shape of 30x32"
    )


def set_scores(space: TinyWorkspace, value: str) -> None:
    path = space.folder / "package.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "scores": value})
    write_manifest(space.folder, "package")


@pytest.mark.parametrize("scores", Scores)
def test_scores_are_what_the_facts_say(tiny: TinyWorkspace, scores: Scores) -> None:
    set_scores(tiny, scores.value)
    assert tiny.package.scores is scores


def test_scores_are_an_error_when_a_later_version_knows_more_of_them(tiny: TinyWorkspace) -> None:
    set_scores(tiny, "ordinal")
    with pytest.raises(ArtefactError, match=r"package\.json: scores: 'ordinal', expected one of logits, log_softmax, "):
        _ = tiny.package.scores


def end_in_sigmoids(space: TinyWorkspace) -> None:
    model = onnx.load(space.package.model)
    model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["scores"], "each"))
    model.graph.output[0].name = "scores"
    onnx.save(model, space.package.model)
    write_manifest(space.folder, "package")


def test_scores_are_read_from_the_graph_when_the_facts_are_of_an_earlier_version(tiny: TinyWorkspace) -> None:
    before = tiny.package.scores
    end_in_sigmoids(tiny)
    assert (before, tiny.package.scores) == (Scores.LOGITS, Scores.SIGMOID)


def test_scores_are_not_known_when_there_is_no_onnx_for_an_earlier_package(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tiny.package
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert package.scores is None


def test_scores_need_no_onnx_when_the_facts_say_them(tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    set_scores(tiny, "sigmoid")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert tiny.package.scores is Scores.SIGMOID
