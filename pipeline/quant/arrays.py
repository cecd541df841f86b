"""Reading what this program wrote with `numpy.savez`, when somebody or something may have changed it since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ArtefactError, in_a_line


def read_arrays(path: Path, what: str) -> dict[str, npt.NDArray[np.generic]]:
    """Return all arrays of an npz by name.

    Only the reading is in here: what the arrays mean is no business of a `try` that takes every exception for damage.

    Args:
        what: the file is, for the error: "calibration file".

    Raises:
        ArtefactError: the file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as err:  # a flipped bit surfaces as any of a dozen kinds, from zipfile or numpy
        raise ArtefactError(f"{path}: invalid {what} ({in_a_line(err)}); delete it and build again") from err
