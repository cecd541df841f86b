"""A package on CPUs that this machine is not: does it open, and does it answer as exact arithmetic does?

    apt-get install qemu-user-static debootstrap
    python benchmarks/emulated.py FOLDER                  # builds a small package of the sample and checks that
    python benchmarks/emulated.py FOLDER -m deploy_weights/P/NAME --images 2

FOLDER gets a Debian for ARM with what `pip install -r requirements-run.txt` brings there; the next run takes it as is.
The package runs by this project's own code in both runtimes, emulated instruction by instruction: minutes for a
ResNet-18 at 224 pixels, and nothing is said about speed. x86 CPUs run the Python and the runtimes of this script.
Emulators before version 8 show the host's /proc/cpuinfo, on which ONNX Runtime 1.31 and later crash on ARM: each CPU
gets a file of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pip
from common import exit_code

from pipeline.data import npz, preprocess
from pipeline.errors import BackendError, DataError
from pipeline.host.hardware import available_cores
from pipeline.packages.package import Package, open_package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.ort import run_exact

REPOSITORY = Path(__file__).parents[1]
SUITE = "bookworm"
CORES = 2
SECONDS = 3600  # a run that takes longer hangs

# Runs in the emulated machine: runtime, package, images in, answers out.
GUEST = """
import sys
from pathlib import Path
import numpy as np
from pipeline.host import hardware
from pipeline.packages.package import open_package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place
name, prefix, images, answers = sys.argv[1:]
batches, package = np.load(images), open_package(Path(prefix))
wide = package.has_wide_weights
with open_backend(Runtime(name), package.model, batch=1, placement=place(1, 1), wide_weights=wide) as backend:
    np.save(answers, np.concatenate([backend.infer(batch[None]) for batch in batches]))
    print(backend.version, ", ".join(hardware.instruction_sets()) or "none", sep="|")
"""

SMALL = """
name: small
frontend: {type: torchvision, model: resnet18, shape: {input: [1, 3, 64, 64]}}
dataset:
  sampler: {get_data_num: 64, cover_classes: false}
  process_ops: [{type: DecodeImage}, {type: Resize, size: 73}, {type: CenterCrop, crop_size: [64, 64]},
                {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}, {type: ToTensor}]
"""


@dataclass(frozen=True)
class Cpu:
    """A CPU that qemu emulates, and what its /proc/cpuinfo says."""

    model: str  # for -cpu
    arm: bool
    flags: str
    part: str = ""  # of ARM, by which ONNX Runtime knows it


_V8 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
HOST = Cpu("this CPU", False, "")  # not emulated
CPUS = (
    HOST,
    Cpu("cortex-a72", True, _V8, "0xd08"),
    Cpu("cortex-a76", True, _V82, "0xd0b"),
    # Without SME: with it OpenVINO 2026.4 gives wrong answers here for float32 networks too.
    Cpu("max,sme=off", True, f"{_V82} sve i8mm bf16", "0x051"),
    Cpu("Nehalem", False, "sse4_1 sse4_2"),
    Cpu("Haswell", False, "sse4_1 sse4_2 avx avx2 fma"),
)


@dataclass(frozen=True)
class Machine:
    """How to start Python on an emulated CPU."""

    cpu: Cpu
    command: tuple[str, ...]
    environment: dict[str, str]
    root: Path | None = None  # whose /proc/cpuinfo it sees

    def run(self, arguments: Sequence[str], **more: str) -> str:
        """Return what Python prints with these arguments.

        Raises:
            BackendError: it fails; with its last line.
        """
        if self.root is not None:
            lines = [f"{_cpuinfo(self.cpu, core)}\n" for core in range(CORES)]
            (self.root / "proc" / "cpuinfo").write_text("".join(lines), encoding="utf-8")
        done = subprocess.run(
            [*self.command, *arguments],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "TCG doesn't support" not in line]
            raise BackendError(said[-1] if said else f"exit code {done.returncode}")
        return done.stdout


def emulator(arm: bool) -> str:
    """Return qemu's program.

    Raises:
        DataError: it is not installed.
    """
    name = f"qemu-{'aarch64' if arm else 'x86_64'}"
    found = shutil.which(f"{name}-static") or shutil.which(name)
    if found is None:
        raise DataError(f"{name} is not installed; run: apt-get install qemu-user-static debootstrap")
    return found


def boot(cpu: Cpu, folder: Path) -> Machine:
    """Return the machine; an ARM one is set up in `folder` where it is not there yet."""
    # A library's own choice of kernels must not be overridden for a CPU that is not the host.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    kept["PYTHONPATH"] = str(REPOSITORY)
    if cpu is HOST:
        return Machine(cpu, (sys.executable,), kept)
    root, site = folder / ("arm" if cpu.arm else "x86"), folder / "site"
    if cpu.arm:
        _unpack_debian(root)
    if (root / "proc").is_symlink():  # to the host's, as debootstrap makes it in a container
        (root / "proc").unlink()
    (root / "proc").mkdir(parents=True, exist_ok=True)
    python = str(next((root / "usr" / "bin").glob("python3.*"))) if cpu.arm else sys.executable
    machine = Machine(cpu, (emulator(cpu.arm), "-cpu", cpu.model, "-L", str(root), python), kept, root)
    if cpu.arm:
        if not site.is_dir():
            _install(machine, site)
        kept["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(site)])
    return machine


def _cpuinfo(cpu: Cpu, core: int) -> str:
    lines = [f"processor\t: {core}"]
    if cpu.arm:
        lines += [f"Features\t: {cpu.flags}", "CPU implementer\t: 0x41", "CPU architecture: 8"]
        lines += ["CPU variant\t: 0x0", f"CPU part\t: {cpu.part}", "CPU revision\t: 3"]
    else:
        lines += [f"model name\t: {cpu.model}", f"flags\t\t: {cpu.flags}"]
    return "\n".join([*lines, ""])


def _unpack_debian(root: Path) -> None:
    if root.joinpath("usr", "bin", "python3").exists():
        return
    packages = "--include=python3,libgomp1,ca-certificates"
    command = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", packages, SUITE, str(root)]
    if shutil.which(command[0]) is None:
        raise DataError("debootstrap is not installed; run: apt-get install qemu-user-static debootstrap")
    subprocess.run(command, check=True, stdout=sys.stderr)
    for package in sorted((root / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        # Programs alone are needed, so packages are unpacked and not configured.
        archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True).stdout
        subprocess.run(
            ["tar", "-x", "--skip-old-files", "--keep-directory-symlink", "-C", str(root)], input=archive, check=True
        )


def _install(machine: Machine, site: Path) -> None:
    """Install what a machine needs that runs packages, as pip chooses it there: by the requirements' own markers."""
    with tempfile.TemporaryDirectory(dir=site.parent) as scratch:
        borrowed = Path(scratch) / "pip"  # pip is Python alone, and the small Debian has none
        borrowed.mkdir()
        (borrowed / "pip").symlink_to(Path(pip.__file__).parent)
        target = Path(scratch) / "site"
        options = ["--no-compile", "--only-binary=:all:", "--target", str(target)]
        requirements = str(REPOSITORY / "requirements-run.txt")
        machine.run(["-m", "pip", "install", "-q", *options, "-r", requirements], PYTHONPATH=str(borrowed))
        target.rename(site)


def build_small(folder: Path) -> Path:
    """Return the prefix of a package of the sample, a ResNet-18 for 64 pixels; built where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "build", "small.yaml"]
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": path})
    return folder / "deploy_weights" / "small-int8-percentile-3_64_64-vacc" / "small"


def prepare(package: Package, count: int) -> npt.NDArray[np.generic]:
    """Return images of the build, or synthetic ones where it kept none, as the model takes them."""
    spec, datalist = package.preprocess(), package.workspace_file("datalist")
    if datalist is None:
        images = [preprocess.synthetic(spec, seed) for seed in range(count)]
    else:
        paths = npz.read_datalist(datalist)
        images = [npz.read_image_npz(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    return np.stack([preprocess.prepare(spec, image, raw=package.takes_pixels) for image in images])


def _sqnr_db(exact: npt.NDArray[np.float32], answers: npt.NDArray[np.float32]) -> float:
    noise = float(np.square(answers.astype(np.float64) - exact).sum())
    return 10 * math.log10(float(np.square(exact.astype(np.float64)).sum()) / noise) if noise else math.inf


def check(package: Package, machines: Sequence[Machine], images: int) -> Iterator[str]:
    """Yield the rows of the package's table."""
    prepared = prepare(package, images)
    exact = run_exact(package.model, [image[None] for image in prepared], available_cores())
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "images.npy", Path(scratch) / "answers.npy"
        np.save(given, prepared)
        for machine in machines:
            for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO):
                row = f"| {machine.cpu.model} |"
                try:
                    said = machine.run(["-c", GUEST, runtime.value, str(package.prefix), str(given), str(made)])
                except BackendError as err:
                    yield f"{row} | {runtime.value} | no: {err} | | |"
                    continue
                version, instructions = said.splitlines()[-1].split("|")
                answers = np.load(made)
                same = int((answers.argmax(axis=1) == exact.argmax(axis=1)).sum())
                yield (
                    f"{row} {instructions} | {runtime.value} {version} | yes | {_sqnr_db(exact, answers):.1f} dB | "
                    f"{same}/{len(exact)} |"
                )


def run(args: argparse.Namespace) -> None:
    if platform.machine() != "x86_64":
        raise DataError(f"this script is for x86 machines, and this one is {platform.machine()}")
    folder = args.folder.absolute()
    prefixes = args.model or [build_small(folder)]
    machines = [boot(cpu, folder) for cpu in CPUS if not args.cpu or cpu.model in args.cpu]
    for prefix in prefixes:
        package = open_package(prefix.absolute())
        print(f"{package.name}, {args.images} images\n")
        print("| CPU | int8 instructions | runtime | opens | SQNR beside exact arithmetic | same answers |")
        print("|---|---|---|---|---|---|")
        for row in check(package, machines, args.images):
            print(row, flush=True)
        print()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the ARM machine's files, and the small package")
    parser.add_argument("-m", "--model", type=Path, action="append", help="a package, folder/name; may be repeated")
    parser.add_argument("--images", type=int, default=8, help="(%(default)s)")
    parser.add_argument(
        "--cpu", action="append", choices=[cpu.model for cpu in CPUS], help="only these; may be repeated"
    )
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
