"""What the documents publish of PaddleClas's networks beside their accuracy: reference accuracy and latency on GPUs."""

from __future__ import annotations

from dataclasses import dataclass

BATCHES = (1, 4, 8)  # images per request, of all latencies

Latencies = tuple[float, float, float]  # ms per request, at `BATCHES`


@dataclass(frozen=True)
class Published:
    """One row of the documents' tables 1.2 and 1.3; None where they give no figure. All with TensorRT."""

    reference: tuple[float, float] | None  # top-1 and top-5 of the network's own paper, in %
    v100_fp32: Latencies | None
    t4_fp16: Latencies | None
    t4_fp32: Latencies | None

    def latencies(self) -> dict[str, Latencies]:
        """Return the rows there are, by the GPU and precision they were measured with."""
        rows = {"V100 GPU, FP32": self.v100_fp32, "T4 GPU, FP16": self.t4_fp16, "T4 GPU, FP32": self.t4_fp32}
        return {name: row for name, row in rows.items() if row is not None}


NOTHING = Published(None, None, None, None)

_PADDLECLAS = {
    "ResNet18": Published((69.6, 89.1), (1.22, 2.19, 3.63), (1.3568, 2.5225, 3.61904), (1.45606, 3.56305, 6.28798)),
    "ResNet18_vd": Published(None, (1.26, 2.28, 3.89), (1.39593, 2.69063, 3.88267), (1.54557, 3.85363, 6.88121)),
    "ResNet34": Published((73.2, 91.3), (1.97, 3.25, 5.7), (2.23092, 4.10205, 5.54904), (2.34957, 5.89821, 10.73451)),
    "ResNet34_vd": Published(None, (2.0, 3.28, 5.84), (2.23992, 4.22246, 5.79534), (2.43427, 6.22257, 11.44906)),
    "ResNet34_vd_ssld": Published(None, (2.0, 3.26, 5.85), (2.23992, 4.22246, 5.79534), (2.43427, 6.22257, 11.44906)),
    "ResNet50": Published((76.0, 93.0), (2.54, 4.79, 7.4), (2.63824, 4.63802, 7.02444), (3.47712, 7.84421, 13.90633)),
    "ResNet50_vc": Published(None, (2.57, 4.83, 7.52), (2.67064, 4.72372, 7.17204), (3.52346, 8.10725, 14.45577)),
    "ResNet50_vd": Published(
        (79.2, 94.6), (2.6, 4.86, 7.63), (2.65164, 4.84109, 7.46225), (3.53131, 8.09057, 14.45965)
    ),
    "ResNet101": Published(
        (77.6, 93.8), (4.37, 8.18, 12.38), (5.04037, 7.73673, 10.8936), (6.07125, 13.40573, 24.3597)
    ),
    "ResNet101_vd": Published(None, (4.43, 8.25, 12.6), (5.05972, 7.83685, 11.34235), (6.11704, 13.76222, 25.11071)),
    "ResNet152": Published(
        (77.8, 93.8), (6.05, 11.41, 17.33), (7.28665, 10.62001, 14.90317), (8.50198, 19.17073, 35.78384)
    ),
    "ResNet152_vd": Published(None, (6.11, 11.51, 17.59), (7.29127, 10.86137, 15.32444), (8.54376, 19.52157, 36.64445)),
    "ResNet200_vd": Published(None, (7.7, 14.57, 22.16), (9.36026, 13.5474, 19.0725), (10.80619, 25.01731, 48.81399)),
    "ResNet50_vd_ssld": Published(None, (2.59, 4.87, 7.62), (2.65164, 4.84109, 7.46225), (3.53131, 8.09057, 14.45965)),
    "Fix_ResNet50_vd_ssld": Published(None, None, (3.42818, 7.51534, 13.1937), (5.07696, 14.64218, 27.01453)),
    "ResNet101_vd_ssld": Published(
        None, (4.43, 8.25, 12.58), (5.05972, 7.83685, 11.34235), (6.11704, 13.76222, 25.11071)
    ),
}


def published_of(library: str, name: str) -> Published:
    """Return what the documents publish of a network; `NOTHING` of any that is not in their tables."""
    return _PADDLECLAS.get(name, NOTHING) if library == "paddleclas" else NOTHING
