"""matching.py: which network a checkpoint fits, what is said where it does not, and loading."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from weights_fixtures import State, assert_same, network

from pipeline.errors import DataError
from pipeline.models import zoo
from pipeline.weights import matching


def load_error(state: State) -> str:
    with pytest.raises(DataError) as caught:
        matching.load_strictly(network(), state, Path("w.pth"), "timm tiny")
    return str(caught.value)


def test_load_strictly_copies_every_tensor(state: State) -> None:
    changed = {name: value + 1 for name, value in state.items()}
    target = network()
    matching.load_strictly(target, changed, Path("w.pth"), "timm tiny")
    assert_same(target.state_dict(), changed)


def test_load_strictly_takes_checkpoints_of_half_precision_and_without_batch_counters(state: State) -> None:
    half = {name: value.half() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    target = network()
    matching.load_strictly(target, half, Path("w.pth"), "timm tiny")
    assert target.state_dict()["fc.weight"].dtype == torch.float32
    assert torch.equal(target.state_dict()["fc.weight"], half["fc.weight"].float())


@pytest.mark.filterwarnings("ignore")  # what PyTorch says of quantized and sparse tensors
@pytest.mark.parametrize("kind", ["sparse", "quantized", "float8"])
def test_load_strictly_takes_weights_stored_otherwise(state: State, kind: str) -> None:
    weight = state["fc.weight"]
    stored = {
        "sparse": weight.to_sparse(),
        "quantized": torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8),
        "float8": weight.to(torch.float8_e4m3fn),
    }[kind]
    target = network()
    matching.load_strictly(target, {**state, "fc.weight": stored}, Path("w.pth"), "timm tiny")
    found = target.state_dict()["fc.weight"]
    assert torch.allclose(found, weight, atol=0 if kind == "sparse" else 0.1)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.complex64])
def test_load_strictly_refuses_weights_that_are_no_floats(state: State, kind: torch.dtype) -> None:
    state["fc.weight"] = state["fc.weight"].to(kind)
    name = str(kind).removeprefix("torch.")
    assert load_error(state) == (
        f"w.pth: tensor fc.weight is {name}, not float: packed or quantized weights; give the checkpoint of the float "
        "network"
    )


def test_load_strictly_refuses_weights_without_values(state: State) -> None:
    state["fc.weight"] = state["fc.weight"].to("meta")
    assert load_error(state) == (
        "w.pth: tensor fc.weight has a shape and no values (a meta tensor); save the weights themselves"
    )


def test_load_strictly_counts_names_when_they_do_not_fit(state: State) -> None:
    state["head.bias"], state["tail.weight"] = state.pop("fc.bias"), state.pop("fc.weight")
    assert load_error(state) == (
        "w.pth: not a checkpoint of timm tiny: 2 keys missing (first: fc.bias), 2 unexpected (first: head.bias); "
        "check frontend.model"
    )


def test_load_strictly_says_how_many_when_the_number_of_classes_differs(state: State) -> None:
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 4), torch.zeros(7)
    assert load_error(state) == (
        "w.pth: has 7 classes, wanted 5; give images of its 7 classes (without images: frontend.num_classes=7, or "
        "--num_classes 7 of export), or a checkpoint of 5"
    )


def test_load_strictly_shows_both_shapes_when_the_classifier_has_other_inputs(state: State) -> None:
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 8), torch.zeros(7)
    assert "2 of another shape (first: fc.weight is [7, 8], wanted [5, 4])" in load_error(state)


@pytest.mark.parametrize("classes", [1000, 7])
def test_load_strictly_names_the_networks_that_a_checkpoint_fits(classes: int) -> None:
    other = zoo.build_network(zoo.find_model("timm", "resnet34"), classes).state_dict()
    with pytest.raises(DataError) as caught:
        matching.load_strictly(
            zoo.build_network(zoo.find_model("timm", "resnet18")), other, Path("w.pth"), "timm resnet18"
        )
    assert str(caught.value).endswith("; it fits torchvision resnet34, timm resnet34")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name"), [("torchvision", "resnet18"), ("official", "iresnet18"), ("timm", "resnet50d")]
)
def test_networks_of_finds_network_and_classes_whatever_the_order_of_names(library: str, name: str) -> None:
    state = zoo.build_network(zoo.find_model(library, name), 7).state_dict()
    names = sorted(state)
    for order in (names, names[::-1], random.Random(4).sample(names, len(names))):
        rows, classes = matching.networks_of({each: state[each] for each in order})
        assert f"{library}/{name}" in {f"{row.library}/{row.name}" for row in rows}
        assert classes == 7


def test_networks_of_finds_none_when_a_shape_differs() -> None:
    state = zoo.build_network(zoo.find_model("timm", "resnet18"), 7).state_dict()
    assert matching.networks_of({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}) == ([], 0)


def test_load_strictly_passes_over_counters_that_the_network_has_not(state: State) -> None:
    target = network()
    changed = {**state, "fc.weight": state["fc.weight"] + 1, "bn2.num_batches_tracked": torch.tensor(3)}
    matching.load_strictly(target, changed, Path("w.pth"), "timm tiny")
    assert torch.equal(target.state_dict()["fc.weight"], state["fc.weight"] + 1)


def test_load_strictly_shows_both_shapes_when_a_convolution_differs(state: State) -> None:
    state["conv1.weight"] = torch.zeros(4, 3, 7, 7)
    assert load_error(state) == (
        "w.pth: not a checkpoint of timm tiny: 1 of another shape (first: conv1.weight is [4, 3, 7, 7], wanted "
        "[4, 3, 3, 3]); check frontend.model"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_load_strictly_names_the_tensor_when_it_holds_nan_or_inf(state: State, bad: float) -> None:
    state["bn1.running_var"][2] = bad
    assert load_error(state) == "w.pth: tensor bn1.running_var holds NaN or Inf; this checkpoint cannot be used"


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("aux", "2 unexpected (first: aux.bias); save a state dict of the network alone"),
        (
            "headless",
            "2 keys missing (first: fc.bias); it has no classifier; give the checkpoint of the whole network",
        ),
        (
            "two layers",
            "2 keys missing (first: fc.bias), 4 unexpected (first: fc.0.bias); its classifier is of other layers; "
            "export the network to ONNX and give that file",
        ),
        (
            "convolution",
            "2 of another shape (first: fc.weight is [5, 512, 1, 1], wanted [1000, 512]); the network was changed; "
            "export it to ONNX and give that file",
        ),
        (
            "grey",
            "1 of another shape (first: conv1.weight is [64, 1, 7, 7], wanted [64, 3, 7, 7]); the network was changed; "
            "export it to ONNX and give that file",
        ),
        (
            "lora",
            "2 unexpected (first: fc.lora_A); LoRA's weights are beside the network's; merge them (merge_and_unload() "
            "of peft) and save its state dict",
        ),
        ("other", None),
    ],
)
def test_describe_nearest_names_what_is_between_and_what_to_do(change: str, nearest: str | None) -> None:
    state = zoo.build_network(zoo.find_model("torchvision", "resnet18"), 5).state_dict()
    if change == "aux":
        state = {**state, "aux.weight": torch.zeros(5, 9), "aux.bias": torch.zeros(5)}
    elif change == "headless":
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    elif change == "two layers":
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        state |= {f"fc.{layer}.{part}": torch.zeros(5, 5) for layer in (0, 2) for part in ("weight", "bias")}
    elif change == "convolution":
        state = {**state, "fc.weight": state["fc.weight"][..., None, None]}
    elif change == "grey":
        state = {**state, "conv1.weight": state["conv1.weight"][:, :1]}
    elif change == "lora":
        state = {**state, "fc.lora_A": torch.zeros(2, 512), "fc.lora_B": torch.zeros(5, 2)}
    else:
        state = {f"odd{name}": value for name, value in state.items()}
    found = matching.describe_nearest(state)
    assert found == (None if nearest is None else f"torchvision/resnet18 comes nearest, but for {nearest}")


@pytest.mark.parametrize("name", ["fc.1", "classifier", "head.fc"])
def test_a_classifier_of_another_name_is_taken_and_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = zoo.find_model("torchvision", "resnet18")
    wanted = zoo.build_network(row, 5).state_dict()
    state = {key.replace("fc.", f"{name}."): value for key, value in wanted.items()}
    rows, classes = matching.networks_of(state)
    assert row in rows and classes == 5
    said = f"{name!r} is taken for 'fc' of torchvision resnet18; layers without weights beside it (dropout, softmax)"
    assert said in matching.describe_renamed(row, state)
    target = zoo.build_network(row, 5)
    matching.load_strictly(target, state, Path("w.pth"), "torchvision resnet18")
    assert_same(target.state_dict(), wanted)
    assert f"note: w.pth: {said}" in capsys.readouterr().err
    assert matching.describe_renamed(row, wanted) == ""


def test_a_classifier_without_a_bias_is_not_taken_for_one_with_it() -> None:
    row = zoo.find_model("torchvision", "resnet18")
    state = {key.replace("fc.", "fc.1."): value for key, value in zoo.build_network(row, 5).state_dict().items()}
    del state["fc.1.bias"]
    assert matching.networks_of(state) == ([], 0)
