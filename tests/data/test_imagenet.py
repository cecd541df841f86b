from __future__ import annotations

import gzip
import io
import pickle
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.config.choices import ClassOrder
from pipeline.data.ground_truth import find_ground_truth
from pipeline.data.imagenet import ClassInfo, Dataset, imagenet_classes, list_dataset, read_label_list
from pipeline.data.labels import classes_of, read_classes, validation_label, write_classes
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")


LABELS_KEY = "dataset.val_label or evaluation.val_label (--val_label of calibset and init)"


def make_files(root: Path, *names: str) -> Path:
    """Make files whose content is their own name: listings look at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def make_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def labels_of(dataset: Dataset) -> dict[str, int | None]:
    return {sample.key: sample.class_index for sample in dataset.samples if sample.class_index is not None}


def error_of(*args: object, **kwargs: object) -> str:
    with pytest.raises(DataError) as caught:
        list_dataset(*args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


def test_imagenet_classes_are_a_thousand_in_the_networks_order() -> None:
    classes = imagenet_classes()
    assert len({known.id for known in classes}) == len(classes) == 1000
    assert classes[0] == ClassInfo("n01440764", "tench, Tinca tinca")
    assert [index for index, known in enumerate(classes) if known.name == "crane"] == [134, 517]


def test_list_dataset_gives_imagenet_indices_when_folders_are_wnids(tmp_path: Path) -> None:
    make_files(tmp_path, "n01443537/b.JPEG", "n01443537/a.jpg", "n01440764/c.jpeg", "n01440764/.hidden.JPEG")
    dataset = list_dataset(tmp_path)
    assert [(sample.key, sample.class_index) for sample in dataset.samples] == [
        ("n01440764/c", 0),
        ("n01443537/a", 1),
        ("n01443537/b", 1),
    ]
    assert dataset.classes == imagenet_classes()
    assert labels_of(dataset) == {"n01440764/c": 0, "n01443537/a": 1, "n01443537/b": 1}


@pytest.mark.parametrize(("count", "own"), [(2, True), (None, False), (1000, False), (3, False)])
def test_list_dataset_takes_some_of_imagenets_folders_as_the_classes_when_the_network_has_as_many(
    tmp_path: Path, count: int | None, own: bool
) -> None:
    """As Imagenette's ten."""
    make_files(tmp_path, "n02979186/b.JPEG", "n01440764/a.JPEG", "n02979186/c.JPEG")
    dataset = list_dataset(tmp_path, class_count=count)
    first, second = ("n01440764", "n02979186") if own else ("n01440764", "n01443537")
    assert [known.id for known in dataset.classes[:2]] == [first, second]
    assert dataset.classes[0].name == "tench, Tinca tinca"
    assert len(dataset.classes) == (2 if own else 1000)
    assert labels_of(dataset) == {
        "n01440764/a": 0,
        "n02979186/b": 1 if own else 482,
        "n02979186/c": 1 if own else 482,
    }


def test_list_dataset_keeps_one_class_apart_from_a_flat_folder(tmp_path: Path) -> None:
    assert list_dataset(make_files(tmp_path / "a", "n01443537/x.JPEG")).samples[0].class_index == 1
    own = list_dataset(make_files(tmp_path / "b", "cats/x.JPEG"))
    assert own.classes == (ClassInfo("cats", "cats"),)


def test_list_dataset_takes_sorted_folders_as_classes_when_they_are_not_imagenets(tmp_path: Path) -> None:
    make_files(tmp_path, "dog/1.png", "cat/1.png", "dog/2.PNG")
    (tmp_path / "eel").mkdir()
    dataset = list_dataset(tmp_path, suffix="png")
    assert [known.id for known in dataset.classes] == ["cat", "dog", "eel"]
    assert [(sample.key, sample.class_index) for sample in dataset.samples] == [
        ("cat/1", 0),
        ("dog/1", 1),
        ("dog/2", 1),
    ]


def test_list_dataset_uses_the_networks_classes_when_ids_are_given(tmp_path: Path) -> None:
    make_files(tmp_path, "cat/1.JPEG", "dog/1.JPEG")
    dataset = list_dataset(tmp_path, class_ids=["dog", "bird", "cat"])
    assert [sample.class_index for sample in dataset.samples] == [2, 0]
    make_files(tmp_path, "fish/1.JPEG")
    assert error_of(tmp_path, class_ids=["dog", "bird", "cat"]) == (
        f"{tmp_path}: 1 folders with images are none of the 3 classes (fish);"
        f" move them away, or give labels by {LABELS_KEY}"
    )


def test_list_dataset_refuses_a_stray_folder_among_wnids(tmp_path: Path) -> None:
    make_files(tmp_path, "n01440764/a.JPEG", "backup/a.JPEG")
    assert error_of(tmp_path) == (
        f"{tmp_path}: 1 folders are ImageNet classes, 1 are not (first: backup); move those away"
    )


@pytest.mark.parametrize("place", ["val/val_label.txt", "val_label.txt", "val/val_list.txt", "val_list.txt"])
@pytest.mark.parametrize("form", ["val/{}.JPEG", "{}.JPEG", "{}"])
def test_list_dataset_finds_the_label_list_of_a_flat_folder(tmp_path: Path, place: str, form: str) -> None:
    make_files(tmp_path, "val/b.JPEG", "val/a.JPEG")
    (tmp_path / place).write_text(f"{form.format('a')} 65\r\n\n{form.format('b')}\t970\n")
    dataset = list_dataset(tmp_path / "val")
    assert [(sample.key, sample.class_index) for sample in dataset.samples] == [("val/a", 65), ("val/b", 970)]


def test_list_dataset_descends_when_the_root_holds_one_split_and_its_list(tmp_path: Path) -> None:
    make_files(tmp_path, "val/a.JPEG")
    (tmp_path / "val_list.txt").write_text("val/a.JPEG 7\n")
    assert [(s.key, s.class_index) for s in list_dataset(tmp_path).samples] == [("val/a", 7)]


def test_list_dataset_asks_for_a_split_when_the_root_holds_two(tmp_path: Path) -> None:
    make_files(tmp_path, "train/n01440764/a.JPEG", "train/n01443537/a.JPEG", "val/b.JPEG")
    assert (
        error_of(tmp_path) == f"{tmp_path}: holds train and val; give one of them: {tmp_path}/train or {tmp_path}/val"
    )
    assert len(list_dataset(tmp_path / "train").samples) == 2


@pytest.mark.parametrize("splits", [("train", "valid", "test"), ("Training", "Testing")])
def test_list_dataset_asks_for_a_split_when_several_hold_the_same_class_folders(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    make_files(tmp_path, *(f"{split}/{name}/1.png" for split in splits for name in ("ant", "bee", "cat")))
    shown, ways = " and ".join(sorted(splits)), " or ".join(f"{tmp_path}/{split}" for split in sorted(splits))
    assert error_of(tmp_path) == f"{tmp_path}: holds {shown}; give one of them: {ways}"
    assert len(list_dataset(tmp_path / splits[0]).classes) == 3


def test_list_dataset_knows_the_labels_of_official_validation_images(tmp_path: Path) -> None:
    make_files(tmp_path, "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    assert [sample.class_index for sample in list_dataset(tmp_path).samples] == [65, 970]


def test_list_dataset_prefers_the_given_list_to_folders(tmp_path: Path) -> None:
    make_files(tmp_path / "set", "n01440764/a.JPEG", "n01443537/b.JPEG")
    (tmp_path / "own.txt").write_text("a 5\nb 6\n")
    samples = list_dataset(tmp_path / "set", val_label=tmp_path / "own.txt").samples
    assert [sample.class_index for sample in samples] == [5, 6]


def test_list_dataset_keeps_unlabelled_images_when_labels_are_not_required(tmp_path: Path) -> None:
    make_files(tmp_path, "x/a.JPEG", "b.JPEG")
    samples = list_dataset(tmp_path, require_labels=False).samples
    assert [(sample.key, sample.class_index) for sample in samples] == [(f"{tmp_path.name}/b", None), ("x/a", None)]


def test_list_dataset_names_the_path_when_it_is_missing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert error_of(gone) == f"{gone}: no such folder or tar; give the folder of the images"


def test_list_dataset_counts_other_suffixes_when_none_matches(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.png", "a/2.png", "b/1.bmp", "b/notes.txt")
    assert error_of(tmp_path, "JPEG") == (
        f"{tmp_path}: no .jpeg or .jpg or .jpe or .jfif images, found 2 png, 1 bmp;"
        " set dataset.sampler.suffix (--suffix of calibset, image2npz and init) to any"
    )
    assert error_of(tmp_path, "webp").startswith(f"{tmp_path}: no .webp images, found 2 png, 1 bmp;")


def test_list_dataset_takes_every_kind_of_image_that_pillow_reads(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/2.PNG", "a/3.webp", "b/4.JPEG", "b/5.bmp", "b/6.tif", "b/7.ppm", "b/8.jfif", "b/9.gif"]
    make_files(tmp_path, *names, "b/notes.txt")
    assert [sample.source.name for sample in list_dataset(tmp_path).samples] == sorted(names)


def test_list_dataset_counts_what_a_suffix_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path, "a/1.jpg", "a/2.jpeg", "a/3.png", "b/4.JPG", "b/5.png", "b/6.webp", "b/notes.txt")
    assert len(list_dataset(tmp_path, "JPEG").samples) == 3
    assert capsys.readouterr().err == (
        f"note: {tmp_path}: 3 images, left out 2 png, 1 webp images; dataset.sampler.suffix (--suffix of"
        " calibset, image2npz and init) any takes every kind\n"
    )


def test_list_dataset_counts_photos_that_pillow_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path, "a/1.jpg", "a/2.HEIC", "b/3.dng", "b/4.jpg", "b/5.heic")
    assert len(list_dataset(tmp_path).samples) == 2
    assert capsys.readouterr().err == (
        f"note: {tmp_path}: 2 images, left out 2 heic, 1 dng images; convert them to take them\n"
    )


@pytest.mark.parametrize(
    ("lines", "count", "ids"),
    [
        ("jpg/a.jpg 0\njpg/b.jpg 1\njpg/c.jpg 2\n", None, ["class_0", "class_1", "class_2"]),
        ("a 0\nb 2\nc 2\n", None, ["class_0", "class_1", "class_2"]),  # most of the indices: class 1 is missing
        ("a 0\nb 1\nc 1\n", 4, ["class_0", "class_1", "class_2", "class_3"]),
        ("x/rose/a.jpg 0\nx/tulip/b.jpg 1\nx/tulip/c.jpg 1\n", None, ["rose", "tulip"]),
        ("x/2/a.jpg 0\nx/1/b.jpg 1\nx/1/c.jpg 1\n", None, ["2", "1"]),
        ("x/2/a.jpg 0\nx/1/b.jpg 1\nx/2/c.jpg 1\n", None, ["class_0", "class_1"]),
    ],
)
def test_list_dataset_takes_the_classes_of_a_list(
    tmp_path: Path, lines: str, count: int | None, ids: list[str]
) -> None:
    names = [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in lines.splitlines()]
    make_files(tmp_path / "jpg", *(f"{name}.jpg" for name in names))
    (tmp_path / "train_list.txt").write_text(lines)
    dataset = list_dataset(tmp_path / "jpg", val_label=tmp_path / "train_list.txt", class_count=count)
    assert [known.id for known in dataset.classes] == ids
    wanted = [int(line.split()[1]) for line in lines.splitlines()]
    assert [sample.class_index for sample in dataset.samples] == wanted


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("a 65\nb 970\n", None),  # so few of the indices can only be a part
        ("".join(f"i{index} {index}\n" for index in range(1000)), None),
        ("a 0\nb 1\n", 1000),
        ("n01440764/a.JPEG 0\nn01443537/b.JPEG 1\n", None),  # by the wnids
        ("ILSVRC2012_val_00000001 65\nILSVRC2012_val_00000002.JPEG 970\n", None),
    ],
)
def test_list_dataset_takes_imagenets_classes_when_a_list_is_of_them(
    tmp_path: Path, lines: str, count: int | None
) -> None:
    names = [line.split()[0].rpartition("/")[2].removesuffix(".JPEG") for line in lines.splitlines()]
    make_files(tmp_path / "set", *(f"{name}.JPEG" for name in names))
    (tmp_path / "list.txt").write_text(lines)
    dataset = list_dataset(tmp_path / "set", val_label=tmp_path / "list.txt", class_count=count)
    assert dataset.classes == imagenet_classes()


def test_list_dataset_takes_the_listed_images_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of PaddleClas's flowers102: train_list.txt and val_list.txt over one folder."""
    make_files(tmp_path / "jpg", *(f"{name}.jpg" for name in "abcde"))
    (tmp_path / "train_list.txt").write_text("jpg/a.jpg 0\njpg/c.jpg 1\njpg/e.jpg 2\n")
    dataset = list_dataset(tmp_path / "jpg", val_label=tmp_path / "train_list.txt")
    assert [(sample.name, sample.class_index) for sample in dataset.samples] == [("a", 0), ("c", 1), ("e", 2)]
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/jpg: 3 images of {tmp_path}/train_list.txt, 2 others left out\n"
    )


def test_list_dataset_takes_as_many_classes_as_the_network_has_when_nothing_is_labelled(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg", "b.png")
    dataset = list_dataset(tmp_path, class_count=3, require_labels=False)
    assert ([known.id for known in dataset.classes], len(dataset.samples)) == (["0", "1", "2"], 2)


def test_list_dataset_says_so_when_a_flat_folder_has_no_label_list(tmp_path: Path) -> None:
    make_files(tmp_path / "set", "a.JPEG", "b.JPEG")
    assert error_of(tmp_path / "set") == (
        f"{tmp_path}/set: 2 of 2 images have no label (first: a.JPEG): neither class folders nor a list"
        f" val_label.txt or val_list.txt here or in {tmp_path}; give a list of lines 'name index' by {LABELS_KEY}"
    )


def test_list_dataset_says_so_when_images_lie_beside_class_folders(tmp_path: Path) -> None:
    make_files(tmp_path, "n01440764/a.JPEG", "stray.JPEG")
    assert error_of(tmp_path) == (
        f"{tmp_path}: 1 images lie outside the class folders (first: stray.JPEG); move them into class folders"
        f" (data_prep/valprep.sh does it for ILSVRC2012_img_val), or give a list of all labels by {LABELS_KEY}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.JPEG 1\nb.JPEG\n", "{}:2: expected 'name index', found 'b.JPEG'"),
        (
            "a.JPEG 1\nb.JPEG x\n",
            "{}:2: expected 'name index', found 'b.JPEG x': 'x' is no number; number the classes from 0, in the order "
            "of the network's outputs",
        ),
        ("a.JPEG -1\nb.JPEG 1\n", "{}:1: expected 'name index', found 'a.JPEG -1'"),
        ("0 a.JPEG\n1 b.JPEG\n", "{}:1: expected 'name index', found '0 a.JPEG'; the name comes first"),
        ("a.JPEG 1\nb.JPEG -1\n", "{}:2: expected 'name index', found 'b.JPEG -1'"),
        ("\n\n", "{}: holds no labels, expected lines 'name index'"),
        ("b.JPEG 1000\n", "{}:1: class index 1000, expected 0 to 999 (1000 classes); indices count from 0"),
        ("a.JPEG 1\nx/a.jpg 2\n", "{}:2: a has class index 2, but line 1 says 1; remove one of them"),
        (
            "a.JPEG 1\nc.JPEG 2\nb.JPEG 3\n",
            "{}:2: c.JPEG is not in {root} (1 of 3 listed images are missing); fetch them, or give a list of the images"
            f" that are there by {LABELS_KEY}",
        ),
        (
            "a.JPEG 970\n",
            "{root}: 1 of 2 images have no label (first: b.JPEG) in {}; add lines 'name index', or remove the images",
        ),
    ],
)
def test_list_dataset_names_the_line_when_the_list_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    root = make_files(tmp_path / "set", "a.JPEG", "b.JPEG")
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    assert error_of(root, val_label=labels) == message.format(labels, root=root)


def test_list_dataset_refuses_file_names_that_would_break_lists(tmp_path: Path) -> None:
    make_files(tmp_path, "n01440764/a\nb.JPEG")
    assert "holds a control character; rename the file" in error_of(tmp_path)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "lines",
    [
        ["file,label", "a b.png,0", "c.png,12"],
        ["image_id,class_id", "a b,0", "c,12"],
        ["image_id\tclass_id", "a b\t0", "c\t12"],
        ["name index", "a b.png 0", "c.png 12"],
        ["file name;class id", "a b.png;0", "c.png;12"],
        ["image (path),label (int)", "a b.png,0", "c.png,12"],
        ["a b.png,0", "c.png,12"],
        ['"a b.png",0', '"c.png",12'],
        ["a b.png, 0", "c.png, 12"],
        ["a b.png\t0", "c.png\t12"],
        ["a b.png;0", "c.png; 12"],
        ["# name index", "", '"a b.png" 0', '"c.png" 12'],
        ["folder\\a b.png 0", "folder\\c.png 12"],
    ],
)
def test_read_label_list_takes_tables(tmp_path: Path, lines: list[str], mark: str, ending: str) -> None:
    (tmp_path / "l.csv").write_bytes((mark + ending.join([*lines, ""])).encode())
    assert read_label_list(tmp_path / "l.csv") == {"a b": 0, "c": 12}


def test_list_dataset_refuses_a_list_that_names_none_of_the_images(tmp_path: Path) -> None:
    make_files(tmp_path / "images", "one.png", "two.png")
    (tmp_path / "list.txt").write_text("three.png 0\nfour.png 1\n")
    for required in (True, False):
        with pytest.raises(DataError) as caught:
            list_dataset(tmp_path / "images", val_label=tmp_path / "list.txt", require_labels=required)
        assert str(caught.value) == (
            f"{tmp_path}/list.txt: names none of the 2 images in {tmp_path}/images: three.png is its first, and "
            "one.png the folder's; give the list of these images"
        )


def test_list_dataset_says_which_folders_it_did_not_look_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path, "cat/a/x.png", "cat/b/c/y.png", "dog/a/z.png", "__MACOSX/cat/x.png")
    (tmp_path / "dog/a/empty").mkdir()
    assert len(list_dataset(tmp_path, require_labels=False).samples) == 2
    assert capsys.readouterr().err == (
        f"note: {tmp_path}: 1 folders lie too deep and are not looked into (first: cat/b/c); give a folder further "
        "down, or move their images up\n"
    )


def test_read_label_list_says_so_when_the_list_is_utf_16(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes("a.png 0\n".encode("utf-16"))
    with pytest.raises(DataError) as caught:
        read_label_list(tmp_path / "l.txt")
    assert str(caught.value) == f"{tmp_path}/l.txt: is text in UTF-16; save it as UTF-8"


def test_read_label_list_keeps_dots_that_begin_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("my photo.v2 3\nmy photo.v2.JPEG 3\n")
    assert read_label_list(tmp_path / "l.txt") == {"my photo.v2": 3}


def test_read_label_list_tells_equal_stems_apart_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("set/cat/1.png 0\nset/dog/1.png 1\nset/dog/2.png 1\n")
    assert read_label_list(tmp_path / "l.txt") == {"cat/1": 0, "dog/1": 1, "2": 1}
    root = make_files(tmp_path / "set", "cat/1.png", "dog/1.png", "dog/2.png")
    dataset = list_dataset(root, "png", tmp_path / "l.txt", ["cat", "dog"])
    assert [sample.class_index for sample in dataset.samples] == [0, 1, 1]
    npz_paths = [Path(f"{sample.key}.npz") for sample in dataset.samples]
    assert find_ground_truth(npz_paths, dataset.classes, tmp_path / "l.txt") == labels_of(dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/a 1\ny/a 2\na 1\n", "{}:2: a has class index 2, but line 1 says 1; remove one of them"),
        ("a 1\nx/a 1\ny/a 2\n", "{}:3: a has class index 2, but line 1 says 1; remove one of them"),
        ("x/a 1\nx/a 1\nx/a.png 2\n", "{}:3: a has class index 2, but line 1 says 1; remove one of them"),
    ],
)
def test_read_label_list_refuses_two_indices_of_one_image(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_label_list(tmp_path / "l.txt")
    assert str(caught.value) == message.format(tmp_path / "l.txt")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_list_dataset_reads_the_same_images_from_a_tar(tmp_path: Path, mode: str) -> None:
    root = make_files(tmp_path / "set", "n01440764/a.JPEG", "n01443537/b.JPEG", "n01443537/._b.JPEG")
    path = tmp_path / ("set.tar" if mode == "w" else "set.tar.gz")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(root, ".")
    in_tar, in_folder = list_dataset(path).samples, list_dataset(root).samples
    assert [(s.key, s.class_index) for s in in_tar] == [(s.key, s.class_index) for s in in_folder]
    shutil.rmtree(root)
    for sample in reversed(in_tar):
        assert pickle.loads(pickle.dumps(sample)).source.read() == sample.source.name.encode()
        assert sample.source.content() == sample.source.name.encode()


def test_list_dataset_reads_a_flat_tar_with_the_list_beside_or_inside(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "ILSVRC2012_img_val.tar", [("b.JPEG", b"b"), ("a.JPEG", b"a")])
    (tmp_path / "val_label.txt").write_text("a.JPEG 1\nb.JPEG 2\n")
    samples = list_dataset(path).samples
    assert [(s.key, s.class_index) for s in samples] == [("ILSVRC2012_img_val/a", 1), ("ILSVRC2012_img_val/b", 2)]
    inside = make_tar(tmp_path / "in.tar", [("set/val/a.JPEG", b"a"), ("set/val_list.txt", b"val/a.JPEG 9\n")])
    assert [(s.key, s.class_index) for s in list_dataset(inside).samples] == [("val/a", 9)]


def test_list_dataset_reads_the_class_tars_of_the_training_tar(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "n01443537.tar", [("n01443537_1.JPEG", b"one"), ("n01443537_2.JPEG", b"second")])
    path = make_tar(tmp_path / "train.tar", [("n01443537.tar", inner.read_bytes())])
    samples = list_dataset(path).samples
    assert [(s.key, s.class_index, s.source.read()) for s in samples] == [
        ("n01443537/n01443537_1", 1, b"one"),
        ("n01443537/n01443537_2", 1, b"second"),
    ]


@pytest.mark.parametrize("name", ["/etc/a.JPEG", "../a.JPEG", "x/../../a.JPEG"])
def test_list_dataset_refuses_a_tar_whose_names_leave_it(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "t.tar", [(name, b"x")])
    assert error_of(path) == f"{path}: member {name!r} lies outside the tar; do not use this file"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_list_dataset_refuses_a_tar_with_links(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.JPEG")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert error_of(path) == f"{path}: member 'a.JPEG' is a link or a special file; pack the images themselves"


def test_list_dataset_refuses_a_damaged_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", [("n01440764/a.JPEG", b"x" * 5000)])
    path.write_bytes(path.read_bytes()[:3000])
    assert error_of(path).startswith(f"{path}: ")
    bomb = tarfile.TarInfo("a")
    bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 32
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as stream:
        stream.write(bomb.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    assert "a header claims 4294967296 bytes" in error_of(tmp_path / "bomb.tar.gz")


def test_source_read_says_so_when_the_tar_was_cut_short(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", [("n01440764/a.JPEG", b"x" * 5000)])
    source = list_dataset(path).samples[0].source
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        DataError, match=r"t\.tar:n01440764/a\.JPEG: expected 5000 bytes, found 2488; the tar was changed"
    ):
        source.read()


def test_source_read_says_so_when_the_file_is_gone_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"gone\.JPEG: cannot be read"):
        ImageSource(tmp_path, "gone.JPEG").read()
    monkeypatch.setattr("pipeline.data.sources.MAX_IMAGE_FILE_BYTES", 3)
    make_files(tmp_path, "large.JPEG")
    with pytest.raises(DataError, match=r"large\.JPEG: larger than"):
        ImageSource(tmp_path, "large.JPEG").read()


def test_ground_truth_takes_the_first_that_knows(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a.JPEG 10\n")
    paths = [
        Path("n01440764/a.npz"),
        Path("n01443537/b.npz"),
        Path("val/c.npz"),
        Path("val/ILSVRC2012_val_00000002.npz"),
    ]
    truth = find_ground_truth(paths, imagenet_classes(), labels, {"val/c": 12, "n01443537/b": 13})
    assert truth == {"n01440764/a": 10, "n01443537/b": 1, "val/c": 12, "val/ILSVRC2012_val_00000002": 970}


def test_ground_truth_counts_samples_without_any(tmp_path: Path) -> None:
    paths = [Path("n01440764/a.npz"), Path("val/b.npz"), Path("val/c.npz")]
    with pytest.raises(DataError) as caught:
        find_ground_truth(paths, imagenet_classes())
    assert str(caught.value) == (
        "2 of 3 samples have no ground truth (first: val/b.npz); give their labels with --val_label FILE,"
        " lines 'name index'"
    )


def test_ground_truth_refuses_an_index_that_is_no_class() -> None:
    with pytest.raises(DataError, match=r"^val/a: class index 1000, expected 0 to 999 \(1000 classes\)$"):
        find_ground_truth([Path("val/a.npz")], imagenet_classes(), known={"a": 1000})


def test_ground_truth_refuses_two_samples_of_one_key() -> None:
    with pytest.raises(DataError, match="a second sample n01440764/a; samples are joined by folder and name"):
        find_ground_truth([Path("x/n01440764/a.npz"), Path("y/n01440764/a.npz")], imagenet_classes())


@pytest.mark.realdata
@needs_real_data
def test_list_dataset_labels_every_image_of_the_real_sets() -> None:
    evaluation = list_dataset(REAL / "nips2017_dev" / "val")
    assert len(evaluation.samples) == 1000
    assert all(sample.class_index is not None for sample in evaluation.samples)
    calibration = list_dataset(REAL / "imagenet_train1k")
    assert {sample.class_index for sample in calibration.samples} == set(range(1000))


@pytest.mark.realdata
@needs_real_data
def test_shipped_validation_labels_equal_the_official_list() -> None:
    official = read_label_list(REAL / "labels" / "val_list.txt", 1000)
    assert len(official) == 50_000
    assert all(validation_label(stem) == index for stem, index in official.items())


def test_classes_survive_writing_whatever_their_folders_are_called(tmp_path: Path) -> None:
    known = classes_of(["a b", "caf\u00e9", "line\u2028separator", "not utf-8 \udcff", "n01440764"])
    write_classes(tmp_path / "classes.tsv", known)
    assert read_classes(tmp_path / "classes.tsv") == known
    for bad in ("a\tb", "a\nb"):
        with pytest.raises(DataError, match="holds a tab or a line end; rename its folder"):
            write_classes(tmp_path / "bad.tsv", classes_of(["fine", bad]))
    assert not (tmp_path / "bad.tsv").exists()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (None, ["0", "1", "10", "2"]),
        (ClassOrder.TEXT, ["0", "1", "10", "2"]),
        (ClassOrder.NUMERIC, ["0", "1", "2", "10"]),
    ],
)
def test_list_dataset_sorts_class_folders_as_it_is_told_when_they_are_numbers(
    tmp_path: Path, order: ClassOrder | None, expected: list[str]
) -> None:
    make_files(tmp_path, "10/a.JPEG", "2/b.JPEG", "0/c.JPEG", "1/d.JPEG")
    dataset = list_dataset(tmp_path, class_order=order)
    assert [known.id for known in dataset.classes] == expected
    assert dataset.has_folder_classes
    assert {sample.folder: sample.class_index for sample in dataset.samples} == {
        name: index for index, name in enumerate(expected)
    }


def test_list_dataset_keeps_the_networks_classes_when_an_order_is_given_too(tmp_path: Path) -> None:
    """Evaluation folders with fewer classes: no index moves."""
    make_files(tmp_path, "10/a.JPEG", "2/b.JPEG")
    dataset = list_dataset(tmp_path, class_ids=["0", "1", "10", "2"], class_order=ClassOrder.NUMERIC)
    assert [(sample.folder, sample.class_index) for sample in dataset.samples] == [("10", 2), ("2", 3)]
    assert not dataset.has_folder_classes


def test_list_dataset_names_the_folders_when_they_are_none_of_the_networks_classes(tmp_path: Path) -> None:
    make_files(tmp_path, *(f"{number}/a.JPEG" for number in range(9)))
    assert "8 folders with images are none of the 1 classes (1, 2, 3, 4, 5, ...);" in error_of(
        tmp_path, class_ids=["0"]
    )


def test_list_dataset_says_so_when_the_order_is_numeric_and_folders_are_no_numbers(tmp_path: Path) -> None:
    make_files(tmp_path, "cat/a.JPEG", "dog/b.JPEG")
    assert error_of(tmp_path, class_order=ClassOrder.NUMERIC) == (
        "dataset.class_order: numeric, but the class folders are no numbers ('cat' holds none); wanted names such as "
        "0, 1, 2 or class1, class2; set it to text"
    )


def test_list_dataset_keeps_imagenets_order_whatever_order_is_given(tmp_path: Path) -> None:
    make_files(tmp_path, "n01443537/b.JPEG", "n01440764/c.JPEG")
    dataset = list_dataset(tmp_path, class_order=ClassOrder.NUMERIC)
    assert dataset.classes == imagenet_classes()
    assert not dataset.has_folder_classes
