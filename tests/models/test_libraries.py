"""libraries.py: networks of timm and torchvision, where they are installed, and what is said where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.config.build_file import load_build_file
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.errors import ConfigError, DataError
from pipeline.models import exporter, libraries, zoo
from pipeline.onnx_models import classifier

IMAGES = np.random.default_rng(2).normal(size=(3, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_find_model_names_the_extra_when_the_library_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setattr(libraries, "is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=rf"--model: 'convnext_tiny' needs {library} itself, .*'\.\[{library}\]'"):
        zoo.find_model(library, "convnext_tiny", "--model")
    assert zoo.find_model(library, "resnet18").design is zoo.Design.RESNET  # ours need none


def test_own_networks_stay_when_the_library_is_installed() -> None:
    assert zoo.find_model("timm", "wide_resnet50_2").design is zoo.Design.WIDE
    assert zoo.library_version("timm", "wide_resnet50_2") is None


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_check_says_so_in_a_line_when_the_installed_library_does_not_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str
) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    (tmp_path / f"{library}-9.9.dist-info").mkdir()
    (tmp_path / f"{library}-9.9.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {library}\nVersion: 9.9\n"
    )
    for name in [each for each in sys.modules if each.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    message = rf"{library} 9\.9 is installed but does not import \(operator nms .*'\.\[{library}\]'$"
    with pytest.raises(ConfigError, match=message):
        zoo.find_model(library, "convnext_tiny", "--model")
    assert zoo.find_model(library, "resnet18").design is zoo.Design.RESNET  # ours need none


def need(library: str) -> None:
    pytest.importorskip(library, reason=f"needs the extra {library}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "ghostnet_050"),
        ("timm", "mobileone_s0"),  # whose branches are fused
        ("timm", "vit_tiny_patch16_224"),  # whose position embedding has the input's size
        ("timm", "mobilevit_xxs"),
        ("torchvision", "squeezenet1_1"),  # whose classifier is a convolution
        ("torchvision", "shufflenet_v2_x0_5"),
        ("torchvision", "regnet_y_400mf"),
    ],
)
def test_export_computes_what_the_librarys_network_does(library: str, name: str) -> None:
    need(library)
    row = zoo.find_model(library, name)
    torch.manual_seed(0)
    network = zoo.build_network(row, 10, (64, 64))
    expected = exporter.run_network(network, IMAGES)
    model = exporter.export(row, libraries.fuse(network), (3, 64, 64))
    assert classifier.relative_error(expected, classifier.run(model, IMAGES)) < 1e-4
    assert classifier.check_batch(model, IMAGES, Path(name)) == 10


def spec_of(ops: list[dict[str, object]], hw: tuple[int, int], folder: Path) -> PreprocessSpec:
    values = {
        "name": "x",
        "frontend": {"type": "onnx", "checkpoint": "x.onnx", "shape": {"input": [1, 3, *hw]}},
        "dataset": {"path": "x", "process_ops": ops},
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_build_file(folder / "x.yaml").preprocess


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    return Image.fromarray(noise).resize((410, 300), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["convnext_tiny", "beit_base_patch16_224", "resnet50.a1_in1k", "inception_v3"])
def test_recipe_prepares_images_as_timms_own_transform_does(tmp_path: Path, name: str) -> None:
    need("timm")
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    recipe = libraries.recipe("timm", name)
    wanted = create_transform(**resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict()))(picture())
    spec = spec_of(recipe.process_ops(), recipe.crop_hw, tmp_path)
    pixels = np.ascontiguousarray(np.asarray(picture()).transpose(2, 0, 1))
    np.testing.assert_allclose(preprocess.apply(spec, pixels), wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v2.IMAGENET1K_V1", "vit_b_16.IMAGENET1K_SWAG_E2E_V1"])
def test_recipe_prepares_images_as_torchvisions_own_preset_does(tmp_path: Path, name: str) -> None:
    need("torchvision")
    from torchvision.models import get_model_weights

    architecture, _, tag = name.partition(".")
    weights = get_model_weights(architecture)
    recipe = libraries.recipe("torchvision", name)
    wanted = (weights[tag] if tag else weights.DEFAULT).transforms()(picture())
    spec = spec_of(recipe.process_ops(), recipe.crop_hw, tmp_path)
    pixels = np.ascontiguousarray(np.asarray(picture()).transpose(2, 0, 1))
    np.testing.assert_allclose(preprocess.apply(spec, pixels), wanted.numpy(), atol=1e-4)
    assert recipe.classes == 1000


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        ("timm", "convnext_tinny", "has no network 'convnext_tinny'; did you mean convnext_tiny, "),
        ("timm", "convnext_tiny.best", "has no weights 'best' of convnext_tiny; it has "),
        ("torchvision", "mobilenet_v9", "has no network 'mobilenet_v9'; did you mean mobilenet_v2"),
        ("torchvision", "fasterrcnn_resnet50_fpn", "has no network 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_find_model_says_what_the_library_has(library: str, name: str, message: str) -> None:
    need(library)
    with pytest.raises(ConfigError) as caught:
        zoo.find_model(library, name)
    assert message in str(caught.value)


def test_tag_of_file_knows_published_files_by_their_names() -> None:
    need("torchvision")
    assert libraries.tag_of_file("torchvision", "mobilenet_v2", Path("x/mobilenet_v2-b0353104.pth")) == "IMAGENET1K_V1"
    assert libraries.tag_of_file("torchvision", "mobilenet_v2", Path("x/best.pth")) is None


def test_build_keeps_branches_of_training_only_where_a_checkpoint_has_them() -> None:
    need("torchvision")
    network = libraries.build("torchvision", "googlenet", 10)
    names = list(network.state_dict())
    libraries.drop_auxiliary(network, names)
    assert list(network.state_dict()) == names
    libraries.drop_auxiliary(network, [name for name in names if not name.startswith("aux")])
    assert not any(name.startswith("aux") for name in network.state_dict())
    assert exporter.run_network(network, IMAGES).shape == (3, 10)


def test_fetch_keeps_the_weights_that_the_librarys_loader_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torchvision")
    from torchvision.models import MobileNet_V2_Weights

    state = {"w": torch.arange(4.0)}
    asked = []

    def get_state_dict(self: object, **options: object) -> dict[str, torch.Tensor]:
        asked.append((self, options))
        return state

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", get_state_dict)
    path = libraries.fetch("torchvision", "mobilenet_v2", tmp_path / "cache")
    assert libraries.fetch("torchvision", "mobilenet_v2.IMAGENET1K_V2", tmp_path / "cache") == path
    assert asked == [(MobileNet_V2_Weights.IMAGENET1K_V2, {"check_hash": True})]
    assert torch.equal(torch.load(path, weights_only=True)["w"], state["w"])


def test_fetch_says_so_in_a_line_when_the_weights_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torchvision")
    from torchvision.models import MobileNet_V2_Weights

    def get_state_dict(self: object, **options: object) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(DataError) as caught:
        libraries.fetch("torchvision", "mobilenet_v2", tmp_path)
    assert str(caught.value).startswith("torchvision cannot fetch the weights of mobilenet_v2 (no route to host); ")
    assert not list(tmp_path.iterdir())
