from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.build_config import BuildConfig
from pipeline.errors import DataError
from pipeline.stages import image2npz
from pipeline.stages.artefact_names import read_notes


@pytest.mark.slow
def test_run_names_damaged_evaluation_images_or_leaves_them_out(
    make_config: Callable[..., BuildConfig], image_tree: Path, tmp_path: Path
) -> None:
    bad = image_tree / "n90000002" / "n90000002_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:500])

    def run(out: Path, *overrides: str) -> None:
        out.mkdir()
        image2npz.run(image2npz.take_settings(make_config(f"evaluation.path={image_tree}", *overrides)), {}, out)

    with pytest.raises(DataError) as caught:
        run(tmp_path / "refused")
    assert str(caught.value).splitlines()[0] == (
        f"{image_tree}: 1 of the 24 evaluation images cannot be decoded; replace or remove them, or leave them out: "
        "--skip_bad of build (dataset.skip_bad: true)"
    )
    assert str(caught.value).splitlines()[1].startswith(f"  {bad}: cannot be decoded as an image: ")
    run(tmp_path / "skipped", "dataset.skip_bad=true")
    listed = (tmp_path / "skipped" / "npz_datalist.txt").read_text(encoding="utf-8").splitlines()
    labels = (tmp_path / "skipped" / "val_label.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == len(labels) == 23
    assert "npz/n90000002/n90000002_1.npz" not in listed
    assert read_notes(tmp_path / "skipped")[0].startswith(f"1 evaluation images left out:\n  {bad}: ")
