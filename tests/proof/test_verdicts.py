from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.onnx_models.scores import Scores
from pipeline.proof import verdicts
from pipeline.proof.verdicts import Figures, Verdict


def figures(sqnr_db: float | None, *, same: int = 64, images: int = 64, kl: float = 0.001) -> Figures:
    return Figures(images, same, True, kl, sqnr_db, 0.1, 10.0)


NOT_FINITE = Figures(64, 64, False, None, None, None, 10.0)


def logits(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(16, 10)).astype(np.float32)


def test_compare_gives_figures_of_known_noise() -> None:
    reference = logits()
    noise = logits(1) * np.float32(0.1)
    outputs = reference + noise
    found = verdicts.compare(reference, outputs, Scores.LOGITS)

    def power(values: npt.NDArray[np.float32]) -> float:
        centred = values.astype(np.float64) - values.astype(np.float64).mean(axis=1, keepdims=True)
        return float((centred**2).sum())

    assert found.sqnr_db == pytest.approx(10 * math.log10(power(reference) / power(outputs - reference)), rel=1e-4)
    shares = [np.exp(each.astype(np.float64)) for each in (reference, outputs)]
    wanted, got = (each / each.sum(axis=1, keepdims=True) for each in shares)
    assert found.kl == pytest.approx(float((wanted * np.log(wanted / got)).sum(axis=1).mean()), rel=1e-6)
    assert found.same_answers == (reference.argmax(axis=1) == outputs.argmax(axis=1)).sum()
    assert found.largest_difference == pytest.approx(np.abs(outputs - reference).max())
    assert found.largest_output == pytest.approx(np.abs(reference).max())
    assert found.finite


def test_compare_has_no_noise_where_outputs_are_equal() -> None:
    found = verdicts.compare(logits(), logits(), Scores.LOGITS)
    assert found.sqnr_db is None
    assert found.decibels == math.inf
    assert str(found) == "equal outputs"


def test_compare_says_that_outputs_are_not_finite() -> None:
    outputs = logits()
    outputs[3, 4] = np.nan
    found = verdicts.compare(logits(), outputs, Scores.LOGITS)
    assert not found.finite
    assert found.kl is None
    assert found.decibels == -math.inf


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (figures(None), Verdict.GOOD),
        (figures(29.2, kl=0.0026), Verdict.GOOD),  # resnet18, 99.9999%
        (figures(24.1, same=63, kl=0.0076), Verdict.GOOD),  # 99.99%
        (figures(18.6), Verdict.GOOD),  # few classes, every answer the same
        (figures(18.6, same=60), Verdict.SUSPICIOUS),
        (figures(18.6, kl=0.03), Verdict.SUSPICIOUS),
        (figures(16.0, same=55, kl=0.0615), Verdict.SUSPICIOUS),  # 99.9%
        (figures(14.9), Verdict.SUSPICIOUS),
        (figures(30.0, same=51), Verdict.SUSPICIOUS),
        (figures(30.0, same=52), Verdict.GOOD),
        (figures(30.0, same=2, images=4), Verdict.GOOD),  # too few to count
        (figures(7.3, same=43, kl=0.5), Verdict.REFUSED),  # 99%
        (NOT_FINITE, Verdict.REFUSED),
    ],
)
def test_judge_model_by_what_was_measured(found: Figures, verdict: Verdict) -> None:
    judged = verdicts.judge_model(found, "because")
    assert judged.verdict is verdict
    assert judged.cause == ("" if verdict is Verdict.GOOD else "because")


@pytest.mark.parametrize(
    ("runtime", "exact", "verdict"),
    [
        (30.4, 29.2, Verdict.GOOD),  # resnet18 in OpenVINO with VNNI
        (29.1, 29.2, Verdict.GOOD),
        (11.7, 29.2, Verdict.REFUSED),  # held to AVX2
        (11.6, 24.1, Verdict.REFUSED),
        (9.0, 28.2, Verdict.REFUSED),  # resnet50
        (10.6, 16.0, Verdict.SUSPICIOUS),
        (24.0, 28.0, Verdict.SUSPICIOUS),
        (26.0, 30.0, Verdict.GOOD),
        (35.0, 44.0, Verdict.GOOD),  # few layers: what is left is enough
        (31.0, 44.0, Verdict.SUSPICIOUS),
        (15.9, 16.0, Verdict.GOOD),  # the model is to blame, not the runtime
        (None, None, Verdict.GOOD),
        (64.0, None, Verdict.GOOD),  # of float models: float32 without optimizations is equal to itself
        (30.0, None, Verdict.SUSPICIOUS),
    ],
)
def test_judge_runtime_by_what_it_loses_of_exact_arithmetic(
    runtime: float | None, exact: float | None, verdict: Verdict
) -> None:
    assert verdicts.judge_runtime(figures(runtime), figures(exact), "kernels").verdict is verdict


def test_judge_runtime_refuses_outputs_that_are_not_finite() -> None:
    assert verdicts.judge_runtime(NOT_FINITE, figures(29.0), "kernels").verdict is Verdict.REFUSED


def whole(exact: verdicts.Finding, openvino: verdicts.Finding) -> dict[str, object]:
    runtimes = {
        "onnxruntime": {
            **verdicts.record(figures(35.0), verdicts.Finding(Verdict.GOOD)),
            "float32": figures(29.1).__dict__,
        },
        "openvino": {**verdicts.record(figures(11.7), openvino), "float32": figures(11.7, same=52, kl=0.222).__dict__},
    }
    return {"given": None, "exact": verdicts.record(figures(29.2), exact), "runtimes": runtimes}


def test_describe_gives_a_line_of_sqnrs_and_one_for_each_verdict_that_is_not_good() -> None:
    good = verdicts.Finding(Verdict.GOOD)
    sqnrs = "logit SQNR against float32: 29.2 dB in exact arithmetic, 29.1 dB in onnxruntime, 11.7 dB in openvino"
    assert verdicts.describe(whole(good, good)) == [sqnrs]
    bad = verdicts.Finding(Verdict.REFUSED, "its kernels saturate; use another")
    assert verdicts.describe(whole(good, bad)) == [
        sqnrs,
        "refused in openvino: 11.7 dB, KL 0.2220, 52/64 answers beside float32: its kernels saturate; use another",
    ]
    assert verdicts.describe(whole(verdicts.Finding(Verdict.SUSPICIOUS, "clipping"), good))[1] == (
        "suspicious: 29.2 dB, KL 0.0010, 64/64 answers beside float32 in exact arithmetic: clipping"
    )


def test_describe_names_a_runtime_that_was_lost_and_a_doubtful_export() -> None:
    found = whole(verdicts.Finding(Verdict.GOOD), verdicts.Finding(Verdict.GOOD))
    found["runtimes"]["openvino"] = verdicts.Finding(Verdict.LOST, "died by SIGSEGV").as_dict()  # type: ignore[index]
    found["given"] = {"verdict": "suspicious", "cause": "Resize means something else; export again"}
    assert verdicts.describe(found) == [
        "logit SQNR against float32: 29.2 dB in exact arithmetic, 29.1 dB in onnxruntime",
        "suspicious: the float32 model beside the file as it was given: Resize means something else; export again",
        "openvino left out: it died by SIGSEGV",
    ]


def test_describe_shows_the_runtimes_when_exact_arithmetic_was_lost() -> None:
    found = whole(verdicts.Finding(Verdict.GOOD), verdicts.Finding(Verdict.GOOD))
    found["exact"] = verdicts.Finding(Verdict.LOST, "refused the model").as_dict()
    assert verdicts.describe(found) == [
        "logit SQNR against float32: 29.1 dB in onnxruntime, 11.7 dB in openvino",
        "not checked: exact arithmetic refused the model",
    ]
