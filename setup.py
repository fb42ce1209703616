"""Builds `lightvl._C`, the operator library, through torch's cpp_extension and ninja.

The sources of csrc/cpu are compiled once per instruction set, those of csrc/cuda by nvcc, both
without torch's headers; csrc/ops is compiled once against torch's stable ABI, so that a build made
with one torch runs on the next.

The CUDA kernels have not been run on a GPU yet, so they are built only with LIGHTVL_CUDA=1.
"""

import os
import platform
import shutil
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

CUDA_ARCHITECTURES = "8.0+PTX;9.0a"
NVCC = ["-std=c++20", "-O3", "-Xcompiler", "-Wall,-fvisibility=hidden"]


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


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels; ends the build if they are asked for and cannot be."""
    import torch

    if os.environ.get("LIGHTVL_CUDA", "0") != "1":
        return False
    if torch.version.cuda is None:  # not is_available(): a builder needs no GPU
        sys.exit(f"LIGHTVL_CUDA=1: the installed torch {torch.__version__} has no CUDA")
    home = cuda_home()
    if home is None:
        sys.exit(
            "LIGHTVL_CUDA=1: no folder with bin/nvcc and include/cuda_runtime.h; set CUDA_HOME"
        )
    os.environ["CUDA_HOME"] = str(home)
    # torch asks the GPU where this is unset; both are read when cpp_extension is imported.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    return True


def extension() -> dict[str, object]:
    """Arguments of `setup` that describe the extension; needs torch."""
    import torch

    with_cuda = wants_cuda()
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    no_torch_path = f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"

    cpu_sources = [source for source in glob("csrc/cpu/*.cpp") if source != CHOSEN_ONCE]

    class Build(BuildExtension):  # type: ignore[misc]
        """Adds the objects of each instruction set to the extension before it is linked."""

        def build_extension(self, ext: CppExtension) -> None:
            for name, flags in instruction_sets().items():
                ext.extra_objects += self.compiler.compile(
                    cpu_sources,
                    output_dir=os.path.join(self.build_temp, name),
                    include_dirs=[str(ROOT / "csrc")],
                    debug=self.debug,
                    extra_postargs=[*COMMON, *OPTIMIZE, *flags, f"-DLIGHTVL_ISA={name}"],
                )
            super().build_extension(ext)
            names = ", ".join(instruction_sets())
            print(f"lightvl: built the CPU kernels ({names}); {cuda_note}")

    cuda_note = "no CUDA kernels: they are not proven on a GPU yet, LIGHTVL_CUDA=1 builds them"
    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    if with_cuda:
        cuda_note = f"the CUDA kernels ({os.environ['TORCH_CUDA_ARCH_LIST']}), not proven yet"
        defines += [("LIGHTVL_CUDA", None), ("USE_CUDA", None)]
    library = (CUDAExtension if with_cuda else CppExtension)(
        "lightvl._C",
        [*glob("csrc/ops/*.cpp"), CHOSEN_ONCE, *(glob("csrc/cuda/**/*.cu") if with_cuda else [])],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=defines,
        extra_compile_args={
            "cxx": [*COMMON, no_torch_path, "-O2"],
            "nvcc": [*NVCC, "-Xcompiler", f"-fmacro-prefix-map={ROOT}/="],
        },
        extra_link_args=["-Wl,-z,defs"],
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
