"""What a classifier's output is: logits, probabilities over the classes, or an independent score for each label.

Decided from the graph, never from values: logits may be positive and sum to 1 by chance.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


class Scores(Enum):
    """What the output [N, classes] holds. The values are those of `scores` in package.json."""

    LOGITS = "logits"  # any real numbers; their softmax gives the probabilities
    LOG_SOFTMAX = "log_softmax"  # logarithms of probabilities
    SOFTMAX = "softmax"  # probabilities over the classes; they sum to 1, or to less where outputs were dropped
    SIGMOID = "sigmoid"  # an independent score in [0, 1] for each label; they do not sum to 1
    OTHER = "other"  # none of these (Hardmax, a softmax over another axis, percentages): shown unchanged

    @property
    def takes_softmax(self) -> bool:
        """Whether a softmax over the output gives the probabilities."""
        return self in (Scores.LOGITS, Scores.LOG_SOFTMAX)

    @property
    def meaning(self) -> str:
        """A description for messages."""
        return _MEANINGS[self]


_MEANINGS = {
    Scores.LOGITS: "logits; their softmax gives the probabilities",
    Scores.LOG_SOFTMAX: "log-probabilities: the network ends in a log-softmax",
    Scores.SOFTMAX: "probabilities already: the network ends in a softmax",
    Scores.SIGMOID: "sigmoids: an independent score for each label, which do not sum to 1 over the classes",
    Scores.OTHER: "neither logits nor probabilities of one class (such as Hardmax, a softmax over another axis than "
    "the classes, or percentages), and are shown as they are",
}


def describe(network: Scores, softmax_asked: bool) -> list[str]:
    """Return the build's line on what a network's output is; none where it is logits.

    Args:
        softmax_asked: whether the build file wants a softmax appended (`graph.extra_ops`).
    """
    if network is Scores.LOGITS:
        return []
    done = (
        "; graph.extra_ops makes probabilities of them"
        if network.takes_softmax
        else ("; the softmax of graph.extra_ops is not appended")
    )
    return [f"the outputs are {network.meaning}{done if softmax_asked else ''}"]


def find_scores(model: onnx.ModelProto) -> Scores:
    """Return what the output of a classifier is, by the operators that make it.

    Traces back from the output through operators that keep values, scale them or combine values of one kind; softmax,
    log-softmax and sigmoid written in elementary operators count as well. What is not recognised is taken for logits.

    Args:
        model: any opset, one output [N, classes]; float or QDQ. It is not changed.
    """
    from pipeline.onnx_models.score_graph import Graph
    from pipeline.onnx_models.score_readers import Reader

    return Reader(Graph(model)).output()
