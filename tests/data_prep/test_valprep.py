from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.imagenet import imagenet_classes, list_dataset

DATA_PREP = Path(__file__).parents[2] / "data_prep"
FLAT = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 41)]


def valprep(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(DATA_PREP / "valprep.sh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder's val"
    folder.mkdir()
    for name in FLAT:
        (folder / name).write_text(name)
    return folder


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_valprep_sorts_images_into_the_folders_of_their_classes(flat: Path) -> None:
    expected = {sample.name: sample.class_index for sample in list_dataset(flat).samples}
    done = valprep(flat)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"sorted {len(FLAT)} images of {flat} into class folders; valprep.sh --undo moves them back\n"
    dataset = list_dataset(flat)
    assert dataset.classes == imagenet_classes()
    assert {sample.name: sample.class_index for sample in dataset.samples} == expected
    assert (flat / "n01751748" / FLAT[0]).read_text() == FLAT[0]


def test_valprep_can_be_run_twice_and_undone(flat: Path) -> None:
    valprep(cwd=flat)
    again = valprep(flat)
    assert (again.returncode, again.stdout) == (0, f"{flat} is sorted already\n")
    undone = valprep("--undo", flat)
    assert (undone.returncode, undone.stdout) == (0, f"moved {len(FLAT)} images back into {flat}\n")
    assert sorted(path.name for path in flat.iterdir()) == FLAT


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """The layout of the documents: val/ with its list beside it, and the script alone in data_prep_sh_files/."""
    root = tmp_path / "ImageNet"
    (root / "val").mkdir(parents=True)
    for name in FLAT:
        (root / "val" / name).write_text(name)
    (root / "val_label.txt").write_text("".join(f"{name} {index % 1000}\n" for index, name in enumerate(FLAT)))
    (root / "data_prep_sh_files").mkdir()
    shutil.copy(DATA_PREP / "valprep.sh", root / "data_prep_sh_files")
    return root


def run_alone(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "./data_prep_sh_files/valprep.sh", *arguments]
    path = {"PATH": "/usr/bin:/bin"}  # of no Python that has the package
    return subprocess.run(command, cwd=root, env=path, capture_output=True, text=True, check=False)


def test_valprep_sorts_val_when_it_is_called_as_in_the_documents(documents: Path) -> None:
    done = run_alone(documents)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"sorted {len(FLAT)} images of {documents}/val into class folders")
    wnids = [known.id for known in imagenet_classes()]
    assert files_below(documents / "val") == sorted(f"{wnids[index]}/{name}" for index, name in enumerate(FLAT))
    assert run_alone(documents).stdout == f"{documents}/val is sorted already\n"
    assert run_alone(documents, "--undo").stdout == f"moved {len(FLAT)} images back into {documents}/val\n"
    assert files_below(documents / "val") == FLAT


def test_valprep_says_what_is_missing_when_it_is_alone_without_a_list(documents: Path) -> None:
    (documents / "val_label.txt").unlink()
    done = run_alone(documents)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {documents}/data_prep_sh_files/imagenet_val_classes.txt: no such file")
    assert "give a list of lines 'name index' (valprep.sh DIR LABEL_LIST), or copy that file too" in done.stderr
    assert files_below(documents / "val") == FLAT
    shutil.copy(DATA_PREP / "imagenet_val_classes.txt", documents / "data_prep_sh_files")
    assert run_alone(documents).returncode == 0
    expected = {sample.name: sample.class_index for sample in list_dataset(documents / "val").samples}
    official = (DATA_PREP / "imagenet_val_classes.txt").read_text().split()
    assert expected == {Path(name).stem: int(official[number]) for number, name in enumerate(FLAT)}


def test_valprep_stays_in_the_current_folder_when_images_lie_in_it(documents: Path) -> None:
    (documents / FLAT[0]).write_text("mine")
    done = run_alone(documents)
    assert (done.returncode, done.stderr.count("nothing was moved")) == (2, 1)


def test_valprep_goes_on_where_it_was_stopped(flat: Path) -> None:
    valprep(flat)
    for name in FLAT[:10]:
        next(flat.glob(f"n*/{name}")).rename(flat / name)
    assert valprep(flat).stdout.startswith("sorted 10 images")
    assert not list(flat.glob("*.JPEG"))
    assert len(files_below(flat)) == len(FLAT)


def test_valprep_uses_the_list_beside_the_folder_or_the_one_given(flat: Path, tmp_path: Path) -> None:
    (flat.parent / "val_label.txt").write_text("".join(f"val/{name} 0\r\n" for name in FLAT))
    valprep(flat)
    assert {path.parent.name for path in flat.rglob("*.JPEG")} == {"n01440764"}
    valprep("--undo", flat)
    (tmp_path / "own.txt").write_text("".join(f"{name} 999\n" for name in FLAT))
    assert valprep(flat, "own.txt", cwd=tmp_path).returncode == 0
    assert {path.parent.name for path in flat.rglob("*.JPEG")} == {"n15075141"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("holiday.jpg", "not a folder of ILSVRC2012 validation images (found holiday.jpg); nothing was moved"),
        (
            "n01440764/n01440764_1.JPEG",
            "found n01440764/n01440764_1.JPEG, which is no validation image in a class folder",
        ),
        (f"n01440764/{FLAT[0]}", f"{FLAT[0]} is there twice, in two folders; nothing was moved"),
    ],
)
@pytest.mark.parametrize("undo", [[], ["--undo"]])
def test_valprep_moves_nothing_when_the_folder_holds_something_else(
    flat: Path, extra: str, message: str, undo: list[str]
) -> None:
    (flat / extra).parent.mkdir(exist_ok=True)
    (flat / extra).write_text("mine")
    before = files_below(flat)
    done = valprep(*undo, flat)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {flat}: {message}")
    assert files_below(flat) == before


def test_valprep_moves_nothing_when_the_list_is_wrong(flat: Path, tmp_path: Path) -> None:
    labels = tmp_path / "own.txt"
    labels.write_text(f"{FLAT[0]} 5\n")
    done = valprep(flat, labels)
    assert (done.returncode, done.stderr) == (2, f"error: {FLAT[1]}: has no label in {labels}; nothing was moved\n")
    labels.write_text(f"{FLAT[0]} 1000\n")
    done = valprep(flat, labels)
    assert done.stderr == f'error: {labels}: expected "name index" with an index below 1000, found "{FLAT[0]} 1000"\n'
    assert sorted(path.name for path in flat.iterdir()) == FLAT


def test_valprep_refuses_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert "holds no ILSVRC2012_val_*.JPEG" in valprep(tmp_path).stderr
    assert valprep(tmp_path / "gone").stderr == f"error: {tmp_path}/gone: no such folder\n"
    assert valprep("--all", tmp_path).stderr == "error: unknown option --all; see valprep.sh --help\n"


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("image2npz.py", ["--dataset_path", "--target_path", "--text_path"]),
        ("eval_imagenet.py", ["--result_path", "--datalist", "--label"]),
        ("export_timm_torchvision_model.py", ["--model_library", "--model_name", "--save_dir", "--pretrained_weights"]),
    ],
)
def test_scripts_know_the_documents_flags_when_run_from_another_folder(
    tmp_path: Path, script: str, flags: list[str]
) -> None:
    command = [sys.executable, str(DATA_PREP / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [flag for flag in flags if flag not in done.stdout] == []
