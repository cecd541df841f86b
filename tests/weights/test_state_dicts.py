from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import DataError
from pipeline.weights import state_dicts

State = dict[str, Tensor]
PATH = Path("w.pth")
HINT = "frontend.checkpoint_key (--checkpoint_key of init and export) takes the other"


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)).eval()


RAW: State = network().state_dict()
EMA: State = {name: value + 1 for name, value in RAW.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("content", "raw", "averaged"),
    [
        ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict", "state_dict_ema"),
        (
            {"model": RAW, "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", EMA)}},
            "model",
            "model_ema",
        ),
        ({"ema": EMA, "model": RAW}, "model", "ema"),
        ({"model_state_dict": RAW, "ema_state_dict": EMA}, "model_state_dict", "ema_state_dict"),
        ({"net": RAW, "averaged": prefixed("module.", EMA)}, "net", "averaged"),
        ({"params": RAW, "params_ema": EMA}, "params", "params_ema"),
        ({"net": RAW, "ema": {"decay": 0.9, "module": EMA}}, "net", "ema.module"),
        (
            {"state_dict": {**prefixed("model.", RAW), **prefixed("model_ema.module.", EMA)}},
            "state_dict.model",
            "state_dict.model_ema",
        ),
    ],
)
def test_choose_takes_the_averaged_weights_and_says_how_to_take_the_others(
    content: dict[str, Any], raw: str, averaged: str
) -> None:
    chosen = state_dicts.choose(PATH, content, None)
    assert_same(chosen.tensors, EMA)
    assert chosen.notes[0] == f"w.pth: the averaged weights {averaged!r} taken, not {raw!r}; {HINT}"
    assert_same(state_dicts.choose(PATH, content, raw).tensors, RAW)
    assert_same(state_dicts.choose(PATH, content, averaged).tensors, EMA)


def test_choose_takes_the_raw_weights_when_the_averaged_lack_some() -> None:
    part = {name: value for name, value in EMA.items() if "running" not in name}
    chosen = state_dicts.choose(PATH, {"model": RAW, "ema": part}, None)
    assert_same(chosen.tensors, RAW)
    assert chosen.notes == (f"w.pth: 'model' taken, as 'ema' lacks 2 of its tensors; {HINT}",)


@pytest.mark.parametrize("empty", [None, {}, {"decay": 0.9}, []])
def test_choose_takes_the_raw_weights_when_there_are_no_averaged_ones(empty: object) -> None:
    chosen = state_dicts.choose(PATH, {"model": RAW, "ema": empty, "epoch": 3}, None)
    assert_same(chosen.tensors, RAW)
    assert chosen.notes == ()


def averaged() -> State:
    return AveragedModel(network()).state_dict()


def counted() -> State:
    """As thop leaves a network behind."""
    net = network()
    for module in net.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return net.state_dict()


def lightning() -> State:
    return {**prefixed("model.", RAW), "criterion.weight": torch.ones(5), "val_acc.tp": torch.zeros(5)}


@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        (averaged, "n_averaged"),
        (counted, "0.total_ops, 0.total_params, 1.total_ops, 1.total_params, 2.total_ops, ... 8 in all"),
        (lightning, "criterion.weight, val_acc.tp"),
    ],
)
def test_choose_leaves_out_tensors_that_are_no_weights_and_names_them(make: Callable[[], State], left_out: str) -> None:
    chosen = state_dicts.choose(PATH, {"state_dict": make()}, None)
    assert_same(chosen.tensors, RAW)
    assert chosen.notes == (f"w.pth: tensors other than weights were left out: {left_out}",)


@pytest.mark.parametrize("key", ["my_weights", "student", "backbone_only"])
def test_choose_takes_the_only_state_dict_whatever_its_name(key: str) -> None:
    content = {key: RAW, "epoch": 1, "best": torch.ones(1), "optimizer": {"state": {"0.weight": torch.ones(9)}}}
    assert_same(state_dicts.choose(PATH, content, None).tensors, RAW)


@pytest.mark.parametrize("content", [[RAW], (RAW, 5), {0: RAW, 1: "x"}, [{"epoch": 1}, {"model": RAW}]])
def test_choose_finds_the_state_dict_in_lists_and_under_numbers(content: object) -> None:
    assert_same(state_dicts.choose(PATH, content, None).tensors, RAW)


@pytest.mark.parametrize("content", [list(RAW.values()), {0: torch.ones(3)}, (), [1, "a"]])
def test_choose_refuses_tensors_without_names(content: object) -> None:
    with pytest.raises(DataError, match="no state dict in it"):
        state_dicts.choose(PATH, content, None)


def test_choose_asks_which_when_several_are_equal() -> None:
    with pytest.raises(DataError) as caught:
        state_dicts.choose(PATH, {"left": RAW, "right": EMA}, None)
    assert str(caught.value) == (
        "w.pth: holds 2 state dicts (left, right); frontend.checkpoint_key (--checkpoint_key of init and export) says "
        "which to take"
    )
    assert_same(state_dicts.choose(PATH, {"left": RAW, "right": EMA}, "right").tensors, EMA)


def test_choose_lists_the_keys_when_there_is_none_of_that_name() -> None:
    with pytest.raises(DataError) as caught:
        state_dicts.choose(PATH, {"model": RAW, "ema": EMA}, "mdoel")
    assert str(caught.value) == "w.pth: checkpoint_key 'mdoel' names no state dict of it; wanted one of model, ema"


WRAPPED = ["module._fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "model._orig_mod.module.", "my_net.base."]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "classifier.", *WRAPPED])
def test_choose_takes_off_the_prefix_that_all_weights_share(prefix: str) -> None:
    chosen = state_dicts.choose(PATH, prefixed(prefix, RAW), None)
    assert_same(chosen.tensors, RAW)
    assert chosen.notes == ()


def test_choose_keeps_weights_outside_the_prefix_so_that_loading_refuses_them() -> None:
    mixed = {**prefixed("model.", RAW), "head.scale": torch.ones(3)}
    assert state_dicts.choose(PATH, {"state_dict": mixed}, None).tensors.keys() == mixed.keys()


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_choose_takes_off_what_wrappers_of_parts_add(wrapper: str) -> None:
    """As of torch.compile of each block: only some names have it, and not at their beginning."""
    inner = {name.replace("1.", f"1.{wrapper}."): value for name, value in RAW.items()}
    chosen = state_dicts.choose(PATH, {"state_dict": prefixed("model.", inner)}, None)
    assert_same(chosen.tensors, RAW)
    assert chosen.notes == ()


def test_choose_takes_off_data_parallel_around_the_convolutions() -> None:
    wanted = {**prefixed("features.", RAW), **prefixed("classifier.", RAW)}
    parallel = {**prefixed("features.module.", RAW), **prefixed("classifier.", RAW)}
    assert_same(state_dicts.choose(PATH, {"state_dict": parallel}, None).tensors, wanted)


def test_choose_joins_backbone_and_head() -> None:
    head = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}
    found = {"state_dict": {**prefixed("backbone.", RAW), **prefixed("head.", head)}, "meta": {}}
    assert_same(state_dicts.choose(PATH, found, None).tensors, {**RAW, **head})


def test_choose_keeps_the_name_of_a_single_layer() -> None:
    layer = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}
    assert_same(state_dicts.choose(PATH, layer, None).tensors, layer)


@pytest.mark.parametrize(("one", "other"), [("student", "teacher"), ("online", "target")])
def test_choose_asks_which_when_a_state_dict_holds_a_network_and_its_copy(one: str, other: str) -> None:
    content = {"state_dict": {**prefixed(f"{one}.", RAW), **prefixed(f"{other}.", EMA)}}
    with pytest.raises(DataError, match=rf"holds 2 state dicts \(state_dict.{one}, state_dict.{other}\)"):
        state_dicts.choose(PATH, content, None)
    assert_same(state_dicts.choose(PATH, content, other).tensors, EMA)


@pytest.mark.parametrize("name", ["ema.", "ema_model.module."])
def test_choose_takes_the_average_that_a_network_keeps_as_a_part_of_itself(name: str) -> None:
    content = {**RAW, **prefixed(name, EMA)}
    chosen = state_dicts.choose(PATH, content, None)
    assert_same(chosen.tensors, EMA)
    key = name.partition(".")[0]
    assert [f"the averaged weights {key!r} taken, not 'raw'" in note for note in chosen.notes] == [True]
    assert_same(state_dicts.choose(PATH, content, "raw").tensors, RAW)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ({"fc.weight": torch.zeros(4, 3, dtype=torch.int8), "fc.SCB": torch.ones(4)}, "fc.weight, int8"),
        ({"fc.weight": torch.zeros(6, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(4)}, "fc.weight, uint8"),
        ({"fc.qweight": torch.zeros(4, 3, dtype=torch.int32), "fc.scales": torch.ones(4, 3)}, "fc.qweight, int32"),
        ({"fc.weight": torch.zeros(4, 3).to(torch.float8_e4m3fn)}, "fc.weight, float8_e4m3fn"),
        ({"fc._packed_params._packed_params": (torch.zeros(4, 3), None)}, "fc._packed_params._packed_params, packed"),
    ],
)
def test_choose_refuses_quantized_weights_by_that_cause(names: dict[str, object], first: str) -> None:
    """As bitsandbytes 0.50.2 in 8 and 4 bits, GPTQ, 8-bit floats and torch.ao.quantization's modules save them."""
    with pytest.raises(DataError) as caught:
        state_dicts.choose(Path("w.pth"), {"norm.weight": torch.ones(3), **names}, None)
    assert str(caught.value) == (
        f"w.pth: 1 of its weights are quantized (first: {first}); wanted the float weights that they were made of"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_choose_takes_weights_of_other_floats_and_counts_beside_them(dtype: torch.dtype) -> None:
    tensors = {"fc.weight": torch.ones(4, 3, dtype=dtype), "bn.num_batches_tracked": torch.tensor(3)}
    assert state_dicts.choose(Path("w.pth"), tensors, None).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("within", [True, False])
def test_choose_says_what_the_state_of_an_optimizer_is(within: bool) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net[0](torch.zeros(2, 3, 6, 4)).sum().backward()  # type: ignore[index]
    optimizer.step()
    saved = {"epoch": 3, "optim_state": optimizer.state_dict()} if within else optimizer.state_dict()
    with pytest.raises(DataError, match="holds the state of an optimizer and no weights"):
        state_dicts.choose(PATH, saved, None)
    both = state_dicts.choose(PATH, {"net": net.state_dict(), "trainer": saved}, None)
    assert_same(both.tensors, net.state_dict())


@pytest.mark.parametrize("parametrized", [True, False])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_choose_puts_normalised_weights_together(parametrized: bool, dim: int | None) -> None:
    """As torch.nn.utils.weight_norm and its parametrization keep them."""
    make = nn.utils.parametrizations.weight_norm if parametrized else nn.utils.weight_norm
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        make(net[2], dim=dim)  # type: ignore[index, arg-type]
    found = state_dicts.choose(PATH, net.state_dict(), None)
    assert found.tensors.keys() == RAW.keys()
    assert torch.allclose(found.tensors["2.weight"], RAW["2.weight"], atol=1e-6)
    assert found.notes == (f"{PATH}: pruned or normalised weights, kept in two parts, were put together: 2.weight",)


def test_choose_multiplies_pruned_weights_with_their_mask() -> None:
    net = network()
    prune.random_unstructured(net[0], "weight", 0.5)  # type: ignore[index, no-untyped-call]
    found = state_dicts.choose(PATH, net.state_dict(), None)
    prune.remove(net[0], "weight")  # type: ignore[index, no-untyped-call]
    assert_same(found.tensors, net.state_dict())


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(("mean", "std"), "model."), (("0.mean", "0.std"), "1."), (("normalize.new_mean", "normalize.new_std"), "model.")],
)
def test_choose_says_the_normalisation_that_lies_beside_the_network(names: tuple[str, str], prefix: str) -> None:
    beside = {names[0]: torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), names[1]: torch.full((1, 3, 1, 1), 0.25)}
    found = state_dicts.choose(PATH, {**beside, **prefixed(prefix, RAW)}, None)
    assert_same(found.tensors, RAW)
    (note,) = found.notes
    assert "normalises images, by mean 0.5,0.4,0.3 and std 0.25,0.25,0.25; it is left out" in note
    assert note.endswith("process_ops (init writes them)")
    assert found.normalization is not None
    assert found.normalization.of_shares() == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ([127.5], [127.5], ((0.5,) * 3, (0.5,) * 3)),
        ([0.0], [1.0], None),  # does nothing
        ([0.0], [255.0], None),  # of pixels, or of what else
        ([0.5], [127.5], None),
        ([-0.5], [0.5], None),
    ],
)
def test_normalization_has_a_unit_where_numbers_tell_it(mean: list[float], std: list[float], expected: Any) -> None:
    beside = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    found = state_dicts.choose(PATH, {**beside, **prefixed("model.", RAW)}, None)
    assert found.normalization is not None
    assert found.normalization.of_shares() == expected
    assert found.notes[0].endswith("(--mean of init, --std of init)" if expected is None else "(init writes them)")


def test_choose_joins_a_network_and_the_layer_beside_it() -> None:
    head = {"classifier.weight": torch.ones(5, 4), "classifier.bias": torch.zeros(5)}
    assert_same(state_dicts.choose(PATH, {**prefixed("backbone.", RAW), **head}, None).tensors, {**RAW, **head})
    deep = {"classifier.0.weight": torch.ones(5, 4), "classifier.2.weight": torch.ones(5, 5)}
    kept = {**prefixed("backbone.", RAW), **deep}
    assert_same(state_dicts.choose(PATH, kept, None).tensors, kept)
