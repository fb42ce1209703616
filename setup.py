"""Builds `lightvl._C`, the operator library, through torch's cpp_extension and ninja.

The sources of csrc/cpu are compiled once per instruction set, those of csrc/cuda by nvcc, both
without torch's headers; csrc/ops is compiled once against torch's stable ABI, so that a build made
with one torch runs on the next.

The CUDA kernels are built where torch has CUDA and a toolkit is found; a GPU isn't needed. In the
environment: LIGHTVL_CUDA=0 leaves them out, LIGHTVL_CUDA=1 makes it an error if they can't be
built; TORCH_CUDA_ARCH_LIST says for which GPUs, MAX_JOBS how many files are compiled at once.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11, the oldest torch that a build runs on
OPTIMIZE = ["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
COMMON = ["-std=c++20", "-g0", "-Wall", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}/="]

# What csrc/cpu is compiled for; csrc/cpu/isa.cpp picks one at run time. The baseline comes first
# and is linked first: of an inline function that several objects hold the linker keeps the first
# copy, and that one must run everywhere.
X86_64_LEVELS = {
    "generic": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
CHOSEN_ONCE = "csrc/cpu/isa.cpp"

# *_sm80.cu and the files that only dispatch are compiled for the whole list, *_sm90.cu, whose
# instructions no other GPU has, for 9.0a alone: without 9.0a in the list they are left out, and
# LIGHTVL_SM90 isn't defined.
CUDA_ARCHITECTURES = "8.0+PTX;9.0a"
HOPPER = "9.0a"
NVCC = ["-std=c++20", "-O3", "-Xcompiler", "-Wall,-fPIC,-fvisibility=hidden"]


def instruction_sets() -> dict[str, list[str]]:
    """Names and compiler flags of the instruction sets that a build for this machine carries."""
    return X86_64_LEVELS if platform.machine() in ("x86_64", "AMD64") else {"generic": []}


def find_torch() -> bool:
    """Makes the target environment's torch importable, also under pip's build isolation.

    The isolated environment has no torch, and downloading a second one would be slow and could
    differ from the one that the library will run with.
    """
    for path in (None, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if path is not None and path not in sys.path:
            sys.path.append(path)
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            continue
        return True
    return False


def glob(pattern: str) -> list[str]:
    """Sources below the root by pattern, relative and in a stable order."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def cuda_home() -> Path | None:
    """Folder of a CUDA toolkit that has its compiler and its headers.

    An nvcc on the path alone does not tell: it may be a script that wraps another.
    """
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    for folder in folders:
        home = Path(folder) if folder else None
        if home and (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def cuda_hindrance() -> str | None:
    """Why the CUDA kernels can't be built here, or None."""
    import torch

    if torch.version.cuda is None:  # not is_available(): a builder needs no GPU
        return f"the installed torch {torch.__version__} has no CUDA"
    home = cuda_home()
    if home is None:
        return "no folder with bin/nvcc and include/cuda_runtime.h; set CUDA_HOME"
    command = [str(home / "bin/nvcc"), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", answer)
    version = release[1] if release else "unknown"
    if version.partition(".")[0] != torch.version.cuda.partition(".")[0]:
        return f"{home} has CUDA {version}, torch {torch.__version__} wants {torch.version.cuda}"
    return None


def without_cuda() -> str | None:
    """Why the build leaves the CUDA kernels out, or None; ends it if they are asked for."""
    wish = os.environ.get("LIGHTVL_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f'LIGHTVL_CUDA is "{wish}", expected 0 or 1')
    if wish == "0":
        return "LIGHTVL_CUDA=0"
    hindrance = cuda_hindrance()
    if hindrance and wish == "1":
        sys.exit(f"LIGHTVL_CUDA=1: {hindrance}")
    return hindrance


def architectures() -> list[str]:
    """GPU architectures to build for, such as 8.0+PTX and 9.0a."""
    names = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES)
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            sys.exit(f"TORCH_CUDA_ARCH_LIST: {name} is no architecture such as 8.0+PTX or 9.0a")
    return names


def generated_code(names: list[str]) -> list[str]:
    """Flags of nvcc for architectures."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def ninja() -> str:
    """The build tool's path, also where the environment that has it isn't activated."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    return shutil.which("ninja", path=os.pathsep.join([BIN_DIR, os.environ["PATH"]])) or "ninja"


def compile_cuda(folder: Path) -> list[str]:
    """Compiles csrc/cuda into `folder`, what changed alone, and returns the object files."""
    names = architectures()
    hopper = HOPPER in names
    common = [*NVCC, "-I", "csrc", "-DLIGHTVL_CUDA", *(["-DLIGHTVL_SM90"] if hopper else [])]
    lines = [
        f"builddir = {folder}",
        "rule nvcc",
        f"  command = {cuda_home()}/bin/nvcc $flags -c $in -o $out -MD -MF $out.d",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $in",
    ]
    objects = []
    for source in glob("csrc/cuda/**/*.cu"):
        only_hopper = source.endswith("_sm90.cu")
        if only_hopper and not hopper:
            continue
        flags = common + generated_code([HOPPER] if only_hopper else names)
        objects.append(str(folder / source.replace(".cu", ".o")))
        lines += [f"build {objects[-1]}: nvcc {source}", f"  flags = {shlex.join(flags)}"]
    folder.mkdir(parents=True, exist_ok=True)
    rules = folder / "build.ninja"
    rules.write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run([ninja(), "-f", str(rules), *jobs], cwd=ROOT, check=True)
    return objects


def extension() -> dict[str, object]:
    """Arguments of `setup` that describe the extension; needs torch."""
    import torch

    reason = without_cuda()
    if reason is None:  # read when cpp_extension is imported
        os.environ["CUDA_HOME"] = str(cuda_home())
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    no_torch_path = f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"

    cpu_sources = [source for source in glob("csrc/cpu/*.cpp") if source != CHOSEN_ONCE]

    class Build(BuildExtension):  # type: ignore[misc]
        """Adds the objects of each instruction set and of nvcc to the extension."""

        def build_extension(self, ext: CppExtension) -> None:
            for name, flags in instruction_sets().items():
                ext.extra_objects += self.compiler.compile(
                    cpu_sources,
                    output_dir=os.path.join(self.build_temp, name),
                    include_dirs=[str(ROOT / "csrc")],
                    debug=self.debug,
                    extra_postargs=[*COMMON, *OPTIMIZE, *flags, f"-DLIGHTVL_ISA={name}"],
                )
            if reason is None:
                ext.extra_objects += compile_cuda(Path(self.build_temp).resolve() / "cuda")
            super().build_extension(ext)
            names = ", ".join(instruction_sets())
            print(f"lightvl: built the CPU kernels ({names}); {cuda_note}")

    cuda_note = f"no CUDA kernels: {reason}"
    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    if reason is None:
        cuda_note = f"the CUDA kernels ({', '.join(architectures())})"
        defines += [("LIGHTVL_CUDA", None), ("USE_CUDA", None)]
        defines += [("LIGHTVL_SM90", None)] if HOPPER in architectures() else []
    library = (CppExtension if reason else CUDAExtension)(
        "lightvl._C",
        [*glob("csrc/ops/*.cpp"), CHOSEN_ONCE],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=defines,
        extra_compile_args={"cxx": [*COMMON, no_torch_path, "-O2"]},
        py_limited_api=True,
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


if find_torch():
    setup(**extension())
else:
    setup(setup_requires=["torch>=2.11"])
