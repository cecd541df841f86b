"""activations.py against a plain session, alone and from threads at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from pipeline.quant import placement
from pipeline.runtimes.activations import ActivationReader

Float32 = npt.NDArray[np.float32]


def plain(model: onnx.ModelProto, names: Sequence[str], image: Float32) -> list[Float32]:
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"input": image[None]}))


def activations(model: onnx.ModelProto) -> list[str]:
    """Return every activation, those that share memory in a plain run (Flatten's) among them."""
    return [node.output[0] for node in model.graph.node if node.op_type != "Constant"]


def test_read_gives_what_a_plain_run_gives_for_image_after_image(
    tiny_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    names = activations(tiny_model)
    reader = ActivationReader(tiny_model, names, threads=1)
    for image in batch_nchw[:4]:  # the first makes the buffers; the others go into them
        found = reader.read(image)
        assert set(found) == {"input", *names}
        np.testing.assert_array_equal(found["input"], image[None])
        for name, expected in zip(names, plain(tiny_model, names, image), strict=True):
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_read_gives_only_what_was_asked_for_when_names_repeat_or_are_the_input_and_output(
    tiny_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    relu = next(node.output[0] for node in tiny_model.graph.node if node.op_type == "Relu")
    reader = ActivationReader(tiny_model, [relu, "input", "output", relu], threads=1)
    for image in batch_nchw[:2]:
        found = reader.read(image)
        assert list(found) == ["input", relu, "output"]
        expected = plain(tiny_model, [relu, "output"], image)
        np.testing.assert_allclose(found[relu], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["output"], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [[], ["input"]])
def test_read_gives_the_input_when_nothing_else_is_wanted(
    tiny_model: onnx.ModelProto, batch_nchw: Float32, names: list[str]
) -> None:
    """A pass of `round` whose only layer is the first, or a model without channels to rescale."""
    reader = ActivationReader(tiny_model, names, threads=1)
    for image in batch_nchw[:2]:
        found = reader.read(image)
        assert list(found) == ["input"]
        np.testing.assert_array_equal(found["input"], image[None])


def test_reader_leaves_the_model_as_it_was(tiny_model: onnx.ModelProto) -> None:
    before = tiny_model.SerializeToString(deterministic=True)
    ActivationReader(tiny_model, [*activations(tiny_model), "input"], threads=1)
    assert tiny_model.SerializeToString(deterministic=True) == before


def test_read_gives_each_thread_its_own_values_when_two_read_at_once(
    tiny_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    """Both have read before either looks at what it got, every time."""
    names = placement.observed_tensors(tiny_model)[1:]
    reader = ActivationReader(tiny_model, names, threads=1)
    expected = [dict(zip(names, plain(tiny_model, names, image), strict=True)) for image in batch_nchw]
    both = threading.Barrier(2, timeout=30)
    wrong: list[str] = []
    rounds: list[int] = []

    def work(images: Sequence[int]) -> None:
        try:
            for index in images:
                found = reader.read(batch_nchw[index])
                both.wait()
                wrong.extend(
                    f"{name} of {index}"
                    for name, wanted in expected[index].items()
                    if not np.allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
                )
                both.wait()
                rounds.append(index)
        except BaseException:
            both.abort()
            raise

    threads = [threading.Thread(target=work, args=(range(start, 24, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(rounds) == list(range(24))


def test_read_gives_the_same_when_a_file_is_opened(
    tiny_model: onnx.ModelProto, batch_nchw: Float32, tmp_path: Path
) -> None:
    onnx.save(tiny_model, tmp_path / "model.onnx")
    names = activations(tiny_model)
    of_file = ActivationReader(tmp_path / "model.onnx", names, threads=1).read(batch_nchw[0])
    of_model = ActivationReader(tiny_model, names, threads=1).read(batch_nchw[0])
    assert list(of_file) == list(of_model)
    for name, values in of_model.items():
        np.testing.assert_array_equal(of_file[name], values, err_msg=name)
