"""What each quantizer costs alone, from gradients: one pass forward and one back for an image, for all of them.

For small errors e of an activation, the divergence of the answers from float32's is half of e^T F e, with F the Fisher
information of the answers with respect to the activation. With p the probabilities of an image and r random signs,
the gradient g of logits . (sqrt(p) * r - p (sqrt(p) . r)) has E[g g^T] = F. Errors of rounding are nearly independent,
so that half of the sum of g^2 e^2 estimates the divergence, without running the network once for each quantizer.

Sources: Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989); the Fisher information as
what quantization costs: Li et al., "BRECQ" (arXiv:2102.05426), 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import torch

from pipeline.learn.network import Network, Tensor
from pipeline.learn.operators import UnsupportedError
from pipeline.onnx_models.scores import Scores, find_scores
from pipeline.quant.bias_correction import Dequantized
from pipeline.quant.graphs import WEIGHTED
from pipeline.quant.qmath import Range
from pipeline.quant.sensitivity import Kind, fake_quantize, quantized_activations, quantizer_ranges

Float32 = npt.NDArray[np.float32]

_SEED = 0
_LEAST = 1e-12  # of a probability
_SAME = 3e-2  # relative: a network that computes anything else differs by more, and float32 in another order by less


def divergences(
    float32: onnx.ModelProto,
    int8: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: Sequence[npt.NDArray[np.float32 | np.uint8]],
    expected: Float32,
    advance: Callable[[], object] = lambda: None,
) -> dict[tuple[Kind, str], float]:
    """Return the divergence of the answers from float32's, nats per image, with each quantizer alone.

    Args:
        float32: the model, batch norms folded.
        int8: its QDQ model.
        ranges: by name for every tensor of `placement.observed_tensors(float32)`.
        images: prepared, [C, H, W].
        expected: float32 [images, classes], what the model answers.
        advance: is called after each image.

    Returns:
        By kind and name: of an activation, or of the layer whose weights and bias are meant.

    Raises:
        UnsupportedError: torch cannot compute this network.
    """
    covered = quantizer_ranges(float32, ranges)
    measure = _Measure(float32, {name: covered[name] for name in quantized_activations(float32, int8)}, int8)
    for image, outputs in zip(images, expected, strict=True):
        measure.add(torch.from_numpy(image[None].astype(np.float32)), outputs)
        advance()
    return {quantizer: cost / max(1, len(images)) for quantizer, cost in measure.sums.items()}


class _Measure:
    """Sums over images."""

    def __init__(self, float32: onnx.ModelProto, ranges: Mapping[str, Range], int8: onnx.ModelProto) -> None:
        self._network, self._scores = Network(float32), find_scores(float32)
        self._ranges = ranges
        self._random = torch.Generator().manual_seed(_SEED)
        self._changes = self._changes_of_weights(Dequantized(int8))
        names = dict.fromkeys(name for changes in self._changes.values() for name in changes)
        self._leaves = {name: self._network.constants[name].clone().requires_grad_() for name in names}
        self.sums: dict[tuple[Kind, str], float] = {(Kind.ACTIVATION, name): 0.0 for name in ranges}
        self.sums |= {(Kind.WEIGHTS, name): 0.0 for name in self._changes}

    def _changes_of_weights(self, int8: Dequantized) -> dict[str, dict[str, Tensor]]:
        """Return by layer what int8 changes in each of its constants."""
        constants, found = self._network.constants, {}
        for node in self._network.nodes:
            layer = node.operator in WEIGHTED and node.inputs[1] in constants
            made = int8.constants_of(node.name) if layer else None
            if made is not None:
                named = zip(node.inputs[1:], made, strict=True)
                found[node.name] = {
                    name: torch.from_numpy(value).reshape(constants[name].shape) - constants[name]
                    for name, value in named
                    if name in constants
                }
        return found

    def add(self, given: Tensor, expected: Float32) -> None:
        """Add an image [1, C, H, W]."""
        network, kept = self._network, dict[str, Tensor]()

        def keep(name: str, value: Tensor) -> Tensor:
            if name in self._ranges:
                value = value if value.requires_grad else value.detach().requires_grad_()
                kept[name] = value
            return value

        started = {network.input: keep(network.input, given)}
        output = network.run(started, [network.output], change=keep, replaced=self._leaves)[network.output]
        _compare(output.detach().numpy().reshape(-1), expected.reshape(-1))
        direction = _direction(output.detach(), self._scores, self._random)
        wanted = [*kept.values(), *self._leaves.values()]
        found = torch.autograd.grad((direction * output).sum(), wanted, allow_unused=True)
        gradients = dict(zip([*kept, *self._leaves], found, strict=True))
        for name, value in kept.items():
            if gradients[name] is not None:
                error = fake_quantize(value.detach().numpy(), self._ranges[name]) - value.detach().numpy()
                squares = np.square(gradients[name].numpy() * error, dtype=np.float64)
                self.sums[Kind.ACTIVATION, name] += 0.5 * float(squares.sum())
        for layer, changes in self._changes.items():
            # The errors of weights are the same at every position: their effects add up with their signs.
            parts = [
                float((gradients[name] * each).sum()) for name, each in changes.items() if gradients[name] is not None
            ]
            self.sums[Kind.WEIGHTS, layer] += 0.5 * sum(parts) ** 2


def _direction(output: Tensor, scores: Scores, random: torch.Generator) -> Tensor:
    """Return a random direction: outer products with itself are on average the Fisher information of the output."""
    signs = 2.0 * torch.randint(0, 2, output.shape, generator=random) - 1.0
    if scores is Scores.SIGMOID:
        return signs / torch.sqrt((output * (1 - output)).clamp(min=_LEAST))
    if not scores.takes_softmax:
        return signs / torch.sqrt(output.abs().clamp(min=_LEAST))
    shares = torch.softmax(output, dim=-1)
    roots = torch.sqrt(shares)
    return roots * signs - shares * (roots * signs).sum(dim=-1, keepdim=True)


def _compare(found: Float32, expected: Float32) -> None:
    """Raise UnsupportedError unless torch computes what the model answers."""
    if not np.linalg.norm(found - expected) <= _SAME * np.linalg.norm(expected):
        raise UnsupportedError("torch computes other answers than ONNX Runtime")
