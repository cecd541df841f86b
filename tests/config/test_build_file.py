"""build_file.py: what loads, what is refused and in which words, and that the description of an image is one."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.config.choices import CalibrateMode, ExtraOp, Frontend, Precision, PreprocessAs, WeightRounding
from pipeline.config.vdsp import ColourOrder, NormType, ResizeFilter, ResizeMode, load_vdsp
from pipeline.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]
VENDOR = REPO.parent / "shared" / "vendor"
SHIPPED = sorted((REPO / "build_configs").glob("*"))
VENDOR_FILES = sorted(VENDOR.glob("*.yaml"))

TEXT = """\
name: tiny
frontend:
  type: timm
  model: resnet18
  shape: {input: [1, 3, 224, 224]}
backend:
  dtype: int8
  quantize:
    calibrate_mode: percentile
dataset:
  process_ops:
    - {type: DecodeImage}
    - {type: Resize, size: 256}
    - {type: CenterCrop, crop_size: [224, 224]}
    - {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
    - {type: ToTensor}
"""
OPS = "dataset.process_ops"
VDSP = "torchvision-resnet18-vdsp_params.json"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str, **extra: object) -> BuildConfig:
    Path("b.yaml").write_text(text, encoding="utf-8")
    return load_build_file("b.yaml", overrides, extra={key.replace("__", "."): value for key, value in extra.items()})


def error_of(text: str, *overrides: str, **extra: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(text, *overrides, **extra)
    return str(error.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_load_build_file_loads_when_file_is_shipped(path: Path) -> None:
    cfg = load_build_file(path.name)
    assert cfg == load_build_file(path)
    assert cfg.uses_sample
    assert cfg.notices == ()
    library, model = cfg.frontend.type.value, str(cfg.frontend.model)
    owner = f"ppcls-{model.lower()}" if library == "paddleclas" else f"{library}-{model}"
    assert cfg.preprocess == load_vdsp(f"{owner}-vdsp_params.json")
    assert cfg.preprocess.output_hw == cfg.frontend.chw[1:]
    cfg.check_inputs()


def test_load_build_file_gives_packages_of_their_own_when_files_are_shipped() -> None:
    names = [load_build_file(path).package_name for path in SHIPPED]
    assert len(set(names)) == len(names)


def test_load_build_file_gives_documented_package_when_timm_wideres() -> None:
    cfg = load_build_file("timm_wideres.yaml")
    assert cfg.package_name == "wide_resnet50_2-int8-percentile-3_256_256-vacc"
    assert cfg.graph.extra_op is ExtraOp.SOFTMAX
    assert cfg.dataset.sampler.get_data_num == 1000


@pytest.mark.skipif(not VENDOR_FILES, reason="the vendor's files are not beside this repository")
@pytest.mark.parametrize("path", VENDOR_FILES, ids=lambda path: path.name)
def test_load_build_file_loads_when_file_is_the_vendors(path: Path) -> None:
    cfg = load_build_file(path)
    assert cfg.frontend.type is Frontend.ONNX
    assert (cfg.frontend.input_name, cfg.frontend.chw) == ("input", (3, 224, 224))
    assert cfg.backend.quantize.calibrate_mode is CalibrateMode.PERCENTILE
    assert cfg.preprocess.resize is ResizeMode.STRETCH
    assert cfg.preprocess.filter is ResizeFilter.BILINEAR_CV
    assert not cfg.uses_sample
    with_vdsp = load_build_file(path, [f"dataset.vdsp_params={VENDOR / 'timm-wide_resnet50_2-vdsp_params.json'}"])
    assert with_vdsp.preprocess.mean[0] == 0.485107421875  # the file's float16, not the 0.485 of process_ops


@pytest.mark.skipif(not VENDOR_FILES, reason="the vendor's files are not beside this repository")
def test_load_build_file_notices_hardware_keys_when_file_is_the_vendors() -> None:
    assert load_build_file(VENDOR / "timm_wideres.yaml").notices == ("backend.compile.cluster_mode has no effect here",)


def test_load_build_file_finds_ours_when_path_is_the_documents(here: Path) -> None:
    cfg = load_build_file("./vacc_code/build/timm_wideres.yaml")
    assert cfg.name == "wide_resnet50_2"
    assert cfg.notices[0].startswith("./vacc_code/build/timm_wideres.yaml: no such file; using ")


def test_load_build_file_names_the_file_when_its_suffix_was_left_out(here: Path) -> None:
    (here / "own.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"^own: no such file, .*; did you mean own\.yaml\?$"):
        load_build_file("own")


def test_load_build_file_names_the_file_beside_that_a_path_nearly_names(here: Path) -> None:
    (here / "pets.yaml").write_text("")
    (here / "pets").mkdir()
    with pytest.raises(ConfigError, match=r"^petz\.yaml: no such file, .*; did you mean pets\.yaml\?$"):
        load_build_file("petz.yaml")
    with pytest.raises(ConfigError, match=r"^pets: is a folder, expected a file; did you mean pets\.yaml\?$"):
        load_build_file("pets")


def test_load_build_file_names_a_missing_key_once_when_the_file_is_empty(here: Path) -> None:
    (here / "own.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_build_file("own.yaml")
    assert [line for line in str(caught.value).splitlines() if " name:" in line or ":name:" in line] == [
        "own.yaml:name: missing"
    ]


def test_load_build_file_lists_nearest_when_missing(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"^timm_widres\.yaml: no such file, .*; nearest: timm_wideres\.yaml"):
        load_build_file("timm_widres.yaml")


def test_load_names_the_build_files_of_a_network_first_when_only_the_network_is_given() -> None:
    wanted = r"nearest: ppcls_resnet18\.yaml, timm_resnet18\.yaml, torchvision_resnet18\.yaml$"
    with pytest.raises(ConfigError, match=wanted):
        load_build_file("resnet18")


def test_load_build_file_gives_defaults_when_sections_are_absent(here: Path) -> None:
    cfg = load(TEXT)
    assert (cfg.backend.dtype, cfg.backend.quantize.percentile) == (Precision.INT8, None)
    assert cfg.backend.quantize.quantize_per_channel is True
    assert (cfg.dataset.sampler.suffix, cfg.dataset.sampler.get_data_num, cfg.dataset.sampler.seed) == ("any", 1000, 0)
    assert cfg.dataset.sampler.cover_classes is True
    assert (cfg.evaluation.path, cfg.graph.extra_op, cfg.frontend.num_classes) == (None, None, None)
    assert cfg.workspace.path == Path("./deploy_weights/")
    assert cfg.uses_sample


def test_load_build_file_reports_every_fault_at_its_line_when_several(here: Path) -> None:
    text = TEXT.replace("name: tiny", "name: .tiny").replace("model: resnet18", "modle: resnet18")
    text = text.replace(
        "    calibrate_mode: percentile\n",
        "    calibrate_mode: percentil\n    percentile: 0.9999\n    quantize_per_chanel: true\n"
        "    weight_rounding: neares\n    equalization: yes please\n",
    )
    assert error_of(text).splitlines() == [
        "b.yaml:1 name: expected letters, digits, '.', '_' and '-', not starting with '.', got '.tiny'",
        "b.yaml:2 frontend.model: missing; a frontend of type timm needs the model's name",
        "b.yaml:4 frontend.modle: unknown key; did you mean 'model'?",
        "b.yaml:9 backend.quantize.calibrate_mode: expected one of percentile, kl_divergence, max, mse, measured, "
        "got 'percentil'; did you mean 'percentile'?",
        "b.yaml:10 backend.quantize.percentile: must be in (50, 100], got 0.9999",
        "b.yaml:11 backend.quantize.quantize_per_chanel: unknown key; did you mean 'quantize_per_channel'?",
        "b.yaml:12 backend.quantize.weight_rounding: expected one of second_order, nearest, got 'neares'; "
        "did you mean 'nearest'?",
        "b.yaml:13 backend.quantize.equalization: expected true or false, got 'yes please'",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backend.quantize.percentil=99", "backend.quantize.percentil: unknown key; did you mean 'percentile'?"),
        ("percentile=99", "percentile: unknown key; did you mean backend.quantize.percentile?"),
        ("dtype=fp32", "dtype: unknown key; did you mean frontend.dtype or backend.dtype?"),
        ("backend.quantise.percentile=99", "backend.quantise: unknown key; did you mean 'quantize'?"),
        ("backend.quantize.percentile=50", "backend.quantize.percentile: must be in (50, 100], got 50"),
        ("backend.quantize.percentile='99'", "backend.quantize.percentile: expected a number, got '99'"),
        ("backend.quantize.percentile=true", "backend.quantize.percentile: expected a number, got true"),
        (
            "backend.quantize.quantize_per_channel=1",
            "backend.quantize.quantize_per_channel: expected true or false, got 1",
        ),
        ("backend.quantize.equalization=1", "backend.quantize.equalization: expected true or false, got 1"),
        (
            "backend.quantize.weight_rounding=second-order",
            "backend.quantize.weight_rounding: expected one of second_order, nearest, got 'second-order'; "
            "did you mean 'second_order'?",
        ),
        (
            "backend.quantize.weight_rounding=false",
            "backend.quantize.weight_rounding: expected one of second_order, nearest, got false",
        ),
        ("backend.dtype=int4", "backend.dtype: expected one of int8, fp16, fp32, got 'int4'; did you mean 'int8'?"),
        ("backend.type=cuda", "backend.type: expected 'tvm_vacc', got 'cuda'"),
        ("backend.compile=3", "backend.compile: expected a section of keys, got 3"),
        ("frontend.dtype=int8", "frontend.dtype: expected one of fp32, fp16, got 'int8'"),
        ("frontend.num_classes=0", "frontend.num_classes: expected an integer >= 1, got 0"),
        ("frontend.shape.x=[1,3,224,224]", None),
        (
            "frontend.shape.input=[8,3,224,224]",
            "frontend.shape.input: expected N of 1, or -1 for any batch, got [8, 3, 224, 224]",
        ),
        ("frontend.shape.input=[1,1,224,224]", "frontend.shape.input: expected C of 3 (RGB), got [1, 1, 224, 224]"),
        ("frontend.shape.input=[1,3,0,224]", "frontend.shape.input: expected H and W in 1..16384, got [1, 3, 0, 224]"),
        (
            "frontend.shape.input=[3,224,224]",
            "frontend.shape.input: expected 4 integers [N, C, H, W], got [3, 224, 224]",
        ),
        (
            "frontend.shape.input=[1,3,256,256]",
            "frontend.shape.input: H, W are [256, 256], but the preprocessing makes [224, 224]; set it to "
            "[1, 3, 224, 224], or the crop to [256, 256]",
        ),
        ("dataset.sampler.get_data_num=0", "dataset.sampler.get_data_num: expected an integer >= 1, got 0"),
        ("evaluation.num=0", "evaluation.num: expected an integer >= 1, got 0"),
        (
            "graph.extra_ops.type=argmax",
            "graph.extra_ops.type: expected 'softmax', got 'argmax'",
        ),
        (
            "backend.quantize.skip_conv_layers=[0, conv]",
            'backend.quantize.skip_conv_layers: expected a list of numbers >= 0 or a list of names, got [0, "conv"]',
        ),
        ("dataset.transform_ops=[]", None),
        ("nonsense", "nonsense: expected section.key=value"),
        ("name=[", "name: not a YAML value: '['"),
        ("name={a: 1, a: 2}", "name: not a YAML value: '{a: 1, a: 2}'"),
        ("name.x=1", "name.x: expected a section above it, got 'x' in 'tiny'"),
    ],
)
def test_load_build_file_names_flag_when_override_is_wrong(here: Path, override: str, message: str | None) -> None:
    error = error_of(TEXT, override)
    if message is None:
        assert override.split(".")[1].split("=")[0] in error
    else:
        assert error == f"--set {message}"


def test_load_build_file_takes_overrides_when_right(here: Path) -> None:
    cfg = load(
        TEXT,
        "backend.quantize.percentile=99.99",
        "backend.quantize.skip_conv_layers=[0, 3]",
        "backend.quantize.exclude_layers=[/fc/Gemm]",
        "backend.quantize.quantize_per_channel=false",
        "backend.quantize.equalization=false",
        "backend.quantize.weight_rounding=nearest",
        "frontend.shape={images: [-1, 3, 224, 224]}",
        "dataset.process_ops.1.interpolation=BICUBIC_PILLOW",
        "evaluation.num=10",
    )
    assert cfg.backend.quantize.percentile == 99.99
    assert cfg.backend.quantize.skip_conv_layers == (0, 3)
    assert cfg.backend.quantize.exclude_layers == ("/fc/Gemm",)
    assert cfg.backend.quantize.quantize_per_channel is False
    assert cfg.backend.quantize.equalization is False
    assert cfg.backend.quantize.weight_rounding is WeightRounding.NEAREST
    assert load(TEXT).backend.quantize.equalization is True
    assert load(TEXT).backend.quantize.weight_rounding is WeightRounding.SECOND_ORDER
    assert (cfg.frontend.input_name, cfg.frontend.shape) == ("images", (-1, 3, 224, 224))
    assert cfg.preprocess.filter is ResizeFilter.BICUBIC_PILLOW
    assert cfg.evaluation.num == 10


def test_load_build_file_notices_keys_once_when_they_mean_nothing_here(here: Path) -> None:
    cfg = load(
        TEXT,
        "backend.compile={cluster_mode: 0, any_thing: [1]}",
        "backend.quantize.calibrate_chunk_by=-1",
        "workspace.env_recheck=false",
    )
    assert cfg.notices == (
        "backend.compile.cluster_mode has no effect here",
        "backend.compile.any_thing has no effect here",
        "backend.quantize.calibrate_chunk_by has no effect here",
        "workspace.env_recheck has no effect here",
    )


@pytest.mark.parametrize(
    ("dtype", "mode", "name"),
    [
        ("int8", "kl_divergence", "tiny-int8-kl_divergence-3_224_224-vacc"),
        ("fp16", "max", "tiny-fp16-none-3_224_224-vacc"),
        ("fp32", "percentile", "tiny-fp32-none-3_224_224-vacc"),
    ],
)
def test_package_name_says_precision_and_mode_when_loaded(here: Path, dtype: str, mode: str, name: str) -> None:
    assert load(TEXT, f"backend.dtype={dtype}", f"backend.quantize.calibrate_mode={mode}").package_name == name


def test_preprocess_is_shorter_side_when_size_is_one_number(here: Path) -> None:
    spec = load(TEXT).preprocess
    assert (spec.resize, spec.resize_hw, spec.crop_yx) == (ResizeMode.SHORTER_SIDE, (256, 256), None)
    assert spec.filter is ResizeFilter.BILINEAR_CV


def test_preprocess_is_stretched_when_size_is_two_numbers(here: Path) -> None:
    spec = load(TEXT, f"{OPS}.1.size=[240, 256]").preprocess
    assert (spec.resize, spec.resize_hw, spec.crop_yx) == (ResizeMode.STRETCH, (240, 256), (8, 16))


def test_preprocess_is_in_unit_range_when_ops_are_in_0_to_255(here: Path) -> None:
    norm = "{type: Normalize, div255: false, mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]}"
    spec = load(TEXT, f"{OPS}.3={norm}").preprocess
    assert spec.norm is NormType.MINUSMEAN_DIVSTD
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert spec.std == pytest.approx((0.229, 0.224, 0.225))


def test_preprocess_is_bgr_when_ops_convert_colour(here: Path) -> None:
    text = TEXT.replace("    - {type: Resize", "    - {type: CvtColor, code: COLOR_RGB2BGR}\n    - {type: Resize")
    assert load(text).preprocess.colour is ColourOrder.BGR


def test_load_build_file_reads_ops_when_spelled_transform_ops(here: Path) -> None:
    assert load(TEXT.replace("process_ops", "transform_ops")).preprocess == load(TEXT).preprocess


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("1.type=Rezise", "1.type: unknown op 'Rezise'; did you mean 'Resize'?"),
        ("1.size=0", "1.size: expected [height, width] or one length (the shorter side) in 1..16384, got 0"),
        ("1.size=[1]", "1.size: expected [height, width] or one length (the shorter side) in 1..16384, got [1]"),
        ("1.siez=3", "1.siez: unknown key; did you mean 'size'?"),
        ("3.std=[1, 1, 0]", "3.std: expected 3 numbers > 0, got [1, 1, 0]"),
        (
            "3.mean=[123.675, 116.28, 103.53]",
            "3.mean: expected numbers of a 0..1 image, got [123.675, 116.28, 103.53]; a 0..255 image has div255: false",
        ),
        (
            "3={type: Normalize, mean: [0, 0, 0], std: [255, 255, 255]}",
            "3.std: expected numbers of a 0..1 image, got [255.0, 255.0, 255.0]; a 0..255 image has div255: false",
        ),
        (
            "3={type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2], div255: false}",
            "3.mean: expected numbers of a 0..255 image, got [0.5, 0.5, 0.5]; a 0..1 image has no div255: false",
        ),
        ("3={type: Normalize}", "3.mean: missing\n--set dataset.process_ops.3.std: missing"),
        ("4.type=DecodeImage", "4.type: DecodeImage stands twice"),
    ],
)
def test_load_build_file_names_op_when_it_is_wrong(here: Path, override: str, message: str) -> None:
    assert error_of(TEXT, f"{OPS}.{override}") == f"--set {OPS}.{message}"


VENDOR_STYLE = """\
name: keras_tiny_int8
frontend:
  shape: {input_1: [1, 3, 224, 224]}
  type: keras
  checkpoint: /path/to/tiny.h5
  dtype: fp32
backend:
  type: tvm_vacc
  dtype: int8
  compile: {cluster_mode: 0, data_transport_mode: 1}
  quantize: {calibrate_mode: kl_divergence, quantize_per_channel: true, skip_matmul_layers: [0, 1]}
graph: {extra_ops: {type: null}}
dataset:
  type: tvm
  path: /path/to/calibration
  sampler: {suffix: jpg, get_data_num: 50}
  transform_ops:
    - {type: DecodeImage}
    - {type: CvtColor, code: COLOR_RGB2BGR}
    - {type: Resize, size: [256, 256]}
    - {type: CenterCrop, crop_size: [224, 224]}
    - {type: Normalize, div255: false, mean: [103.939, 116.779, 123.68], std: [1, 1, 1]}
    - {type: ToTensor}
workspace: {work_dir: ./deploy_weights/, save_log: true}
"""


@pytest.mark.parametrize("frontend", ["onnx", "pytorch", "keras", "tensorflow", "caffe", "darknet"])
@pytest.mark.parametrize("mode", ["percentile", "kl_divergence", "max", "mse"])
def test_load_build_file_loads_every_spelling_when_written_for_the_vendor(here: Path, frontend: str, mode: str) -> None:
    cfg = load(VENDOR_STYLE, f"frontend.type={frontend}", f"backend.quantize.calibrate_mode={mode}")
    assert (cfg.frontend.type.value, cfg.backend.quantize.calibrate_mode.value) == (frontend, mode)
    assert (cfg.frontend.input_name, cfg.preprocess.colour) == ("input_1", ColourOrder.BGR)
    assert cfg.notices == tuple(
        f"{key} has no effect here"
        for key in (
            "backend.compile.cluster_mode",
            "backend.compile.data_transport_mode",
            "backend.quantize.skip_matmul_layers",
            "workspace.save_log",
            "workspace.work_dir",
        )
    )


def test_load_build_file_takes_the_command_line_when_the_file_spells_the_key_otherwise(here: Path) -> None:
    cfg = load(VENDOR_STYLE.replace("calibrate_mode:", "alibrate_mode:"), "backend.quantize.calibrate_mode=mse")
    assert cfg.backend.quantize.calibrate_mode is CalibrateMode.MSE
    assert not any("is read as" in notice for notice in cfg.notices)
    ops = "[{type: DecodeImage}, {type: Resize, size: [224, 224]}, {type: ToTensor}]"
    file = TEXT.replace("process_ops", "transform_ops")
    assert load(file, f"dataset.process_ops={ops}").preprocess == load(TEXT, f"dataset.process_ops={ops}").preprocess
    assert load(TEXT, f"dataset.transform_ops={ops}").preprocess == load(file, f"dataset.process_ops={ops}").preprocess


def test_load_build_file_reads_the_mode_when_its_key_lacks_a_letter(here: Path) -> None:
    cfg = load(VENDOR_STYLE.replace("calibrate_mode: kl_divergence", "alibrate_mode: max"))
    assert cfg.backend.quantize.calibrate_mode is CalibrateMode.MAX
    assert "backend.quantize.alibrate_mode is read as calibrate_mode" in cfg.notices
    both = VENDOR_STYLE.replace("calibrate_mode: kl_divergence", "calibrate_mode: max, alibrate_mode: max")
    assert error_of(both).startswith(
        "b.yaml:11 backend.quantize.alibrate_mode: unknown key; did you mean 'calibrate_mode'"
    )


def test_load_build_file_loads_when_a_float_file_leaves_the_preprocessing_to_the_runner(here: Path) -> None:
    text = VENDOR_STYLE[: VENDOR_STYLE.index("dataset:")].replace("dtype: int8", "dtype: fp16")
    cfg = load(text, "frontend.type=onnx")
    assert cfg.package_name == "keras_tiny_int8-fp16-none-3_224_224-vacc"
    message = "b.yaml:1 dataset.process_ops: missing, and vdsp_params too; give one (as in --set "
    with pytest.raises(ConfigError) as error:
        cfg.check_inputs()
    assert str(error.value).startswith(message)
    with pytest.raises(ConfigError, match="missing, and vdsp_params too"):
        _ = cfg.preprocess
    assert load(text, f"dataset.vdsp_params={VDSP}").preprocess == load_vdsp(VDSP)


CUSTOM = "[{type: CustomFunc, module_path: prepare.py, func_name: get, input_shape: [1, 3, 224, 224]}]"


def test_load_build_file_loads_when_an_op_is_the_vendors_code(here: Path) -> None:
    cfg = load(VENDOR_STYLE, f"dataset.transform_ops={CUSTOM}")
    with pytest.raises(ConfigError) as error:
        _ = cfg.preprocess
    assert str(error.value) == (
        "--set dataset.transform_ops.0.type: CustomFunc calls code of the vendor's toolchain; say it with Resize, "
        "CenterCrop and Normalize, or give --set dataset.vdsp_params=FILE"
    )


def test_load_build_file_takes_vdsp_when_an_op_is_the_vendors_code(here: Path) -> None:
    cfg = load(VENDOR_STYLE, f"dataset.transform_ops={CUSTOM}", f"dataset.vdsp_params={VDSP}")
    assert cfg.preprocess == load_vdsp(VDSP)
    assert "dataset.transform_ops.0 (CustomFunc) has no effect here: vdsp_params says it all" in cfg.notices


def test_load_build_file_says_so_in_one_line_when_it_is_none(here: Path) -> None:
    text = "GPUS: (0,1)\nMODEL: {NAME: net}\nTRAIN: {LR: 0.05}\nTEST: {}\nDEBUG: {}\n"
    assert error_of(text) == (
        "b.yaml: not a build file: expected name, frontend, backend, graph, dataset, evaluation, accuracy, workspace, "
        "found GPUS, MODEL, TRAIN, TEST, ..."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VENDOR_STYLE + "---\n" + VENDOR_STYLE, "b.yaml:25: not valid YAML: but found another document"),
        (VENDOR_STYLE.replace("  dtype: fp32", "\tdtype: fp32"), "b.yaml:6: not valid YAML: "),
        (
            VENDOR_STYLE.replace("dataset:\n", "dataset: &again\n").replace("workspace: {", "workspace: *again #"),
            "b.yaml:24: not valid YAML: aliases (*name) are supported for single short values only",
        ),
        (VENDOR_STYLE + "name: again\n", "b.yaml:25 name: given twice"),
    ],
)
def test_load_build_file_is_refused_in_one_line_when_the_yaml_is_strange(here: Path, text: str, message: str) -> None:
    error = error_of(text)
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


def test_load_build_file_names_op_when_order_is_wrong(here: Path) -> None:
    lines = TEXT.splitlines()
    lines[12], lines[13] = lines[13], lines[12]
    assert error_of("\n".join(lines)) == "b.yaml:14 dataset.process_ops.2.type: Resize must come before CenterCrop"


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (
            "[{type: Resize, size: 256}]",
            "the output size depends on the image; expected CenterCrop, or Resize to [height, width]",
        ),
        (
            "[{type: Resize, size: 200}, {type: CenterCrop, crop_size: 224}]",
            "CenterCrop [224, 224] does not fit the resized image [200, 200] [height, width]",
        ),
        ("[]", None),
    ],
)
def test_load_build_file_names_ops_when_output_size_is_unknown(here: Path, ops: str, message: str | None) -> None:
    missing = "missing, and vdsp_params too; give one (as in --set dataset.vdsp_params=FILE)"
    assert error_of(TEXT, f"{OPS}={ops}") == f"--set {OPS}: {message or missing}"


def test_load_build_file_takes_vdsp_alone_when_there_are_no_ops(here: Path) -> None:
    cfg = load(TEXT[: TEXT.index("dataset:")], f"dataset.vdsp_params={VDSP}")
    assert cfg.preprocess == load_vdsp(VDSP)


def test_load_build_file_takes_filter_of_vdsp_when_both_agree(here: Path) -> None:
    assert load(TEXT, f"dataset.vdsp_params={VDSP}").preprocess == load_vdsp(VDSP)


PADDLE = ("frontend.type=paddleclas", "frontend.model=ResNet18")
PADDLE_VDSP = "dataset.vdsp_params=ppcls-resnet18-vdsp_params.json"
RESIZE_CV = f"{OPS}.1.interpolation=BILINEAR_CV"


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ((), PreprocessAs.TORCHVISION),
        (PADDLE, PreprocessAs.PADDLECLAS),
        (("frontend.type=paddle",), PreprocessAs.PADDLECLAS),
        (("dataset.preprocess_as=paddleclas",), PreprocessAs.PADDLECLAS),
        ((*PADDLE, "dataset.preprocess_as=torchvision"), PreprocessAs.TORCHVISION),
        ((RESIZE_CV, PADDLE_VDSP), PreprocessAs.PADDLECLAS),
        ((RESIZE_CV, PADDLE_VDSP, "dataset.preprocess_as=paddleclas"), PreprocessAs.PADDLECLAS),
        ((*PADDLE, f"dataset.vdsp_params={VDSP}"), PreprocessAs.PADDLECLAS),
    ],
    ids=[
        "others",
        "its networks",
        "inference models",
        "said",
        "said otherwise",
        "said by vdsp",
        "said by both",
        "vdsp says nothing",
    ],
)
def test_load_build_file_preprocesses_as_the_library_unless_a_file_says(
    here: Path, overrides: tuple[str, ...], found: PreprocessAs
) -> None:
    cfg = load(TEXT, *overrides)
    assert (cfg.preprocess.preprocess_as, cfg.dataset.preprocess_as) == (found, found)


def test_load_build_file_is_refused_when_vdsp_preprocesses_as_another(here: Path) -> None:
    assert error_of(TEXT, RESIZE_CV, PADDLE_VDSP, "dataset.preprocess_as=torchvision") == (
        "--set dataset.preprocess_as: torchvision here, and ppcls-resnet18-vdsp_params.json says paddleclas; expected "
        "the same in both"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{OPS}.1.size=[256, 256]", "resize is STRETCH [256, 256] against SHORTER_SIDE 256"),
        (f"{OPS}.1.interpolation=BICUBIC_PILLOW", "resize filter is BICUBIC_PILLOW against BILINEAR_PILLOW"),
        (f"{OPS}.3.mean=[0.5, 0.456, 0.406]", "mean is [0.5, 0.456, 0.406] against [0.485107, 0.456055, 0.406006]"),
    ],
)
def test_load_build_file_is_refused_when_ops_and_vdsp_disagree(here: Path, override: str, message: str) -> None:
    vdsp = REPO / "vdsp_params" / VDSP
    error = error_of(TEXT, f"dataset.vdsp_params={VDSP}", override)
    assert error == f"b.yaml:11 {OPS}: disagrees with {vdsp}: {message}"


def test_load_build_file_reports_vdsp_faults_too_when_both_have_some(here: Path) -> None:
    values = json.loads((REPO / "vdsp_params" / VDSP).read_text(encoding="utf-8"))
    values["OpConfig"]["Std"] = [0.229, 0.224]
    Path("v.json").write_text(json.dumps(values), encoding="utf-8")
    error = error_of(TEXT.replace("int8", "int9"), "dataset.vdsp_params=v.json")
    assert error.splitlines() == [
        "b.yaml:7 backend.dtype: expected one of int8, fp16, fp32, got 'int9'; did you mean 'int8'?",
        "v.json:OpConfig.Std: expected 3 numbers > 0, got [0.229, 0.224]",
    ]


def test_load_build_file_names_nearest_when_vdsp_is_missing(here: Path) -> None:
    error = error_of(TEXT, "dataset.vdsp_params=torchvision-resnet19-vdsp_params.json")
    assert error.startswith(
        "--set dataset.vdsp_params: torchvision-resnet19-vdsp_params.json: no such file, nor one of"
    )


def test_check_inputs_names_every_flag_when_files_are_missing(here: Path) -> None:
    text = TEXT.replace("  model:", "  checkpoint: w.pth\n  model:").replace("dataset:", "dataset:\n  val_label: l.txt")
    cfg = load(text, dataset__path=Path("images"), evaluation__path=Path("b.yaml"))
    with pytest.raises(ConfigError) as error:
        cfg.check_inputs()
    assert str(error.value).splitlines() == [
        "b.yaml:4 frontend.checkpoint: w.pth: no such file; give --weights FILE",
        "b.yaml:12 dataset.val_label: l.txt: no such file; give --set dataset.val_label=FILE",
        "--dataset images: no such folder or tar file",
        "--evaluation b.yaml: is neither a folder nor a tar file",
    ]


def test_check_inputs_passes_when_files_are_there(here: Path) -> None:
    Path("w.pth").touch()
    Path("images").mkdir()
    with tarfile.open("eval.tar", "w") as tar:
        tar.add("w.pth")
    cfg = load(
        TEXT, frontend__checkpoint=Path("w.pth"), dataset__path=Path("images"), evaluation__path=Path("eval.tar")
    )
    cfg.check_inputs()
    assert not cfg.uses_sample


def test_check_inputs_names_flag_when_weights_come_without_images(here: Path) -> None:
    Path("w.pth").touch()
    cfg = load(TEXT, frontend__checkpoint=Path("w.pth"), dataset__path=None)
    with pytest.raises(ConfigError) as error:
        cfg.check_inputs()
    message = "real weights cannot be calibrated on sample images; give --dataset DIR"
    assert str(error.value) == f"b.yaml:10 dataset.path: {message}"
    load(TEXT, "backend.dtype=fp32", frontend__checkpoint=Path("w.pth")).check_inputs()  # nothing to calibrate


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dataset.path", "sample weights cannot be calibrated on the images of dataset.path"),
        ("evaluation.path", "sample weights cannot be measured on the images of evaluation.path"),
    ],
)
def test_check_inputs_names_flag_when_images_come_without_weights(here: Path, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(TEXT, f"{key}=.").check_inputs()
    assert str(error.value) == f"b.yaml:2 frontend.checkpoint: {message}; give --weights FILE"


def test_check_inputs_names_both_flags_when_onnx_frontend_has_no_file(here: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(TEXT, "frontend.type=onnx").check_inputs()
    assert str(error.value).splitlines() == [
        "b.yaml:2 frontend.checkpoint: a frontend of type onnx needs a file; give --weights FILE",
        "b.yaml:10 dataset.path: real weights cannot be calibrated on sample images; give --dataset DIR",
    ]


def test_as_dict_is_plain_json_when_dumped(here: Path) -> None:
    cfg = load(TEXT, "backend.compile={when: 2020-01-01}", frontend__checkpoint=Path("w.pth"))
    values = cfg.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["frontend"] == {
        "type": "timm",
        "model": "resnet18",
        "checkpoint": "w.pth",
        "checkpoint_key": None,
        "dtype": "fp32",
        "num_classes": None,
        "output": None,
        "background": None,
        "shape": {"input": [1, 3, 224, 224]},
    }
    assert set(values) == {
        "name",
        "frontend",
        "backend",
        "graph",
        "dataset",
        "evaluation",
        "accuracy",
        "workspace",
        "preprocess",
    }


def test_as_dict_loads_again_when_preprocess_is_taken_out(here: Path) -> None:
    cfg = load(TEXT, "graph.extra_ops.type=softmax", "backend.quantize.skip_conv_layers=[1]")
    values = {key: value for key, value in cfg.as_dict().items() if key != "preprocess"}
    assert load(json.dumps(values)) == cfg


def test_load_build_file_names_the_key_when_a_flag_makes_the_section_that_lacks_it(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("name: x\nfrontend: {type: onnx, checkpoint: x.onnx, shape: {input: [1, 3, 224, 224]}}\n")
    with pytest.raises(ConfigError) as error:
        load_build_file(path, extra={"dataset.path": "images"})
    assert str(error.value).startswith(f"{path}:1 dataset.process_ops: missing, and vdsp_params too; give one")
