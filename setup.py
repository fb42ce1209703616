"""Builds `lightvl._C`, the operator library, through torch's cpp_extension and ninja.

The sources of csrc/cpu are compiled once per instruction set, without torch's headers; csrc/ops is
compiled once against torch's stable ABI, so that a build made with one torch runs on the next.
"""

import os
import platform
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


def extension() -> dict[str, object]:
    """Arguments of `setup` that describe the extension; needs torch."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if os.environ.get("LIGHTVL_CUDA") == "1":
        sys.exit("LIGHTVL_CUDA=1: this version of lightvl has CPU kernels only")
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
            print(f"lightvl: built the CPU kernels ({names}); this version has no CUDA kernels")

    library = CppExtension(
        "lightvl._C",
        [*glob("csrc/ops/*.cpp"), CHOSEN_ONCE],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        extra_compile_args=[*COMMON, no_torch_path, "-O2"],
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
