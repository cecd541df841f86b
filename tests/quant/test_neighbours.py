"""neighbours.py against the arithmetic of the kernels: products of two neighbours, summed in 16 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.models import zoo
from pipeline.quant.int8_weights import round_to_nearest, scales_of
from pipeline.quant.neighbours import largest_sums, partners, weight_pairs

Int8 = npt.NDArray[np.int8]


def lay_out(weights: npt.NDArray[np.generic], *, in_line: bool) -> npt.NDArray[np.int64]:
    """Return one output's weights [channels, positions] as rows whose neighbours a kernel adds in 16 bits.

    In line: one row in the order row, column, channel (ONNX Runtime). Else a row of channels for each position
    (OpenVINO). Rows are padded by zero to an even length.
    """
    rows = weights.astype(np.int64).T
    rows = rows.reshape(1, -1) if in_line else rows
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))


def sums_of_products(rows: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the largest and the least sum of two neighbouring products, for inputs of 0 or 255."""
    one, two = 255 * rows[:, 0::2], 255 * rows[:, 1::2]
    above, below = np.maximum(one, 0) + np.maximum(two, 0), np.minimum(one, 0) + np.minimum(two, 0)
    return int(above.max()), int(below.min())


def assert_fits_16_bits(weights: Int8, shape: tuple[int, ...]) -> None:
    for output in weights.reshape(shape[0], shape[1], -1):
        for in_line in (False, True):
            above, below = sums_of_products(lay_out(output, in_line=in_line))
            assert above <= 32767
            assert below >= -32768


def test_weight_pairs_are_channels_at_one_position_when_their_number_is_even() -> None:
    assert weight_pairs((1, 4, 1, 2)).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert weight_pairs((7, 6)).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_weight_pairs_hold_both_pairings_when_the_number_of_channels_is_odd() -> None:
    # places: channel * 2 + column. OpenVINO: channels 0 and 1 of either column; the third has no partner.
    # ONNX Runtime, column by column: (0,0)(1,0) | (2,0)(0,1) | (1,1)(2,1).
    assert weight_pairs((1, 3, 1, 2)).tolist() == [[0, 2], [1, 3], [1, 4], [3, 5]]
    assert weight_pairs((2, 5)).tolist() == [[0, 1], [2, 3]]


def test_weight_pairs_are_all_there_are_when_one_channel_has_several_filters() -> None:
    """Kernels pair rows, columns or lines, by size, stride and CPU."""
    assert weight_pairs((4, 1, 1, 3)).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert weight_pairs((8, 1, 2, 2), groups=4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


@pytest.mark.parametrize(
    ("shape", "groups", "more"),
    [
        ((2, 298), 1, [[149, 150], [151, 152]]),  # halves of 149: the second begins at an odd place
        ((2, 297), 1, [[149, 150], [151, 152]]),
        ((2, 300), 1, []),  # at an even place: the same pairs
        ((2, 256), 1, []),
        ((2, 514), 1, []),
        ((4, 298, 1, 1), 2, [[149, 150], [151, 152]]),
        ((4, 298, 1, 1), 1, []),  # a convolution of one group is no matrix product
    ],
)
def test_weight_pairs_hold_those_of_the_second_half_when_openvino_splits_the_product(
    shape: tuple[int, ...], groups: int, more: list[list[int]]
) -> None:
    inputs = shape[1]
    found = weight_pairs(shape, groups).tolist()
    assert [pair for pair in found if pair[0] % 2][:2] == more
    assert [pair for pair in found if not pair[0] % 2] == [[place, place + 1] for place in range(0, inputs - 1, 2)]


def test_weight_pairs_are_none_when_each_channel_has_one_filter() -> None:
    assert weight_pairs((8, 1, 3, 3), groups=8).shape == (0, 2)


def test_partners_are_all_that_a_weight_is_paired_with() -> None:
    assert partners(weight_pairs((1, 3, 1, 2)), 6) == [(2,), (3, 4), (0,), (1, 5), (1,), (3,)]


def test_largest_sums_count_weights_of_the_same_sign_only() -> None:
    rows = np.array([[3.0, 4, -5, 2], [-3, -4, 1, 1], [9, -9, 0, 0]])
    assert largest_sums(rows, weight_pairs((3, 4))).tolist() == [7, 7, 9]
    assert largest_sums(rows, weight_pairs((3, 1, 2, 2), groups=3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(6, 3, 7, 7), (6, 4, 3, 3), (6, 5, 3, 3), (6, 1, 5, 5), (6, 2, 1, 1), (6, 1, 1, 1), (6, 9), (6, 64), (3, 7, 1, 3)],
)
def test_nearest_weights_fit_16_bits_in_both_layouts(shape: tuple[int, ...], per_channel: bool) -> None:
    rng = np.random.default_rng(1)
    pairs = weight_pairs(shape)
    for matrix in (
        rng.normal(size=(shape[0], int(np.prod(shape[1:])))),
        rng.uniform(0.97, 1, (shape[0], 500))[:, : int(np.prod(shape[1:]))],
    ):
        rows = matrix.astype(np.float32)
        scales = scales_of(rows, pairs, per_channel=per_channel)
        found = round_to_nearest(rows, scales, pairs)
        assert_fits_16_bits(found, shape)
        # At most one step from the nearest, which only a pair that would sum to 129 needs.
        assert np.abs(found - rows / scales[:, None]).max() <= 1.0
        assert np.abs(found).max() <= 127


def test_eight_bits_do_not_fit_16_bits() -> None:
    """What the checks above are for: weights scaled by their largest alone are cut off."""
    weights = np.full((4, 1), 127, np.int8)
    assert sums_of_products(lay_out(weights, in_line=False))[0] > 32767
    assert sums_of_products(lay_out(-weights, in_line=True))[1] < -32768


def shapes_of_all_networks() -> set[tuple[tuple[int, ...], int]]:
    """Return the shapes of the weights of every network that is shipped, with the groups of the layer."""
    found = set()
    with torch.device("meta"):
        for row in zoo.MODELS:
            for module in zoo.build_network(row, 1000).modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    found.add((tuple(module.weight.shape), getattr(module, "groups", 1)))
    return found


@pytest.mark.slow
def test_weights_of_every_layer_shape_of_every_shipped_network_fit_16_bits() -> None:
    rng = np.random.default_rng(2)
    shapes = shapes_of_all_networks()
    assert len(shapes) > 30
    for shape, groups in shapes:
        outputs = min(shape[0], 8)  # each has a scale of its own
        rows = rng.standard_t(4, (outputs, int(np.prod(shape[1:])))).astype(np.float32)
        pairs = weight_pairs(shape, groups)
        found = round_to_nearest(rows, scales_of(rows, pairs, per_channel=True), pairs)
        assert_fits_16_bits(found, (outputs, *shape[1:]))
