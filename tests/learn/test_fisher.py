"""What quantizers cost, by gradients, against the network run with each of them alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, ranges_seen, run_exact

from pipeline.learn.fisher import divergences
from pipeline.learn.operators import UnsupportedError
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.qmath import Range
from pipeline.quant.sensitivity import Kind, Sensitivity, quantized_activations

Costs = dict[tuple[Kind, str], float]

MODELS = {"logits": "", "softmax": "Softmax"}


def network(last: str) -> onnx.ModelProto:
    """Return a network with a residual addition; the fewer channels it has, the more its activations' noise adds up."""
    made = Builder(seed=5)
    x = made.op("Relu", made.conv("x", 3, 16))
    y = made.op("Relu", made.conv(x, 16, 16))
    x = made.op("Relu", made.op("Add", x, made.conv(y, 16, 16)))
    scores = made.gemm(made.pooled(x), 16, 5)
    return made.model(made.op(last, scores, axis=1) if last else scores)


def costs_by_runs(model: onnx.ModelProto, int8: onnx.ModelProto, ranges: dict[str, Range]) -> Costs:
    measured = Sensitivity(model, int8, ranges).measure(list(images(300)), lambda: None)
    return {(cost.kind, cost.name): cost.kl for cost in measured}


@pytest.mark.slow
@pytest.mark.parametrize("last", MODELS.values(), ids=MODELS)
def test_divergences_are_those_of_each_quantizer_alone(last: str) -> None:
    model, batch = network(last), images(300)
    wide = {name: Range(5 * each.low, 5 * each.high) for name, each in ranges_seen(model, batch[:16]).items()}
    int8 = assemble(model, Parts(ranges=wide, per_channel=True)).model
    found = divergences(model, int8, wide, list(batch), run_exact(model, batch))
    expected = costs_by_runs(model, int8, wide)
    assert found.keys() == expected.keys()
    for kind in Kind:
        ratios = {name: found[kind, name] / cost for (each, name), cost in expected.items() if each is kind and cost}
        assert len(ratios) > 1
        assert 0.5 < np.exp(np.mean(np.log(list(ratios.values())))) < 2, ratios
        of_kind = {key: cost for key, cost in expected.items() if key[0] is kind}
        dearest, cheapest = max(of_kind, key=of_kind.__getitem__), min(of_kind, key=of_kind.__getitem__)
        assert found[dearest] > found[cheapest]


@pytest.mark.slow
def test_divergences_scale_with_the_square_of_a_quantizers_step() -> None:
    model, batch = network(""), images(8)
    seen = ranges_seen(model, batch)
    name = quantized_activations(model, assemble(model, Parts(ranges=seen, per_channel=True)).model)[1]
    costs = []
    for share in (1.0, 4.0):
        ranges = {**seen, name: Range(0.0, share * seen[name].high)}
        int8 = assemble(model, Parts(ranges=ranges, per_channel=True)).model
        found = divergences(model, int8, ranges, list(batch), run_exact(model, batch))
        costs.append(found[Kind.ACTIVATION, name])
    assert costs[1] / costs[0] == pytest.approx(16, rel=0.25)


def test_network_that_answers_otherwise_is_refused() -> None:
    model, batch = network(""), images(2)
    ranges = ranges_seen(model, batch)
    int8 = assemble(model, Parts(ranges=ranges, per_channel=True)).model
    with pytest.raises(UnsupportedError, match="other answers"):
        divergences(model, int8, ranges, list(batch), -run_exact(model, batch))
