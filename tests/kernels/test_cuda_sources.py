"""Every CUDA source compiles, without a warning, for every card that is supported."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

import emdask
from emdask.kernels.launch_cuda import OPTIONS
from tests.cuda_host import host

PACKAGE = Path(emdask.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "90", "100")
# A double costs 64 floats on most cards, and is hardly ever meant.
FLAGS = ("-cubin", "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-Werror,-warn-double-usage")
# Known to nvcc, which includes the headers of the host, and unknown to NVRTC, which CuPy calls.
HOST_WORDS = re.compile(
    r"\b(std|assert|INFINITY|NAN|HUGE_VALF?|M_PI\w*|(FLT|DBL|INT|UINT|LONG|LLONG|ULLONG)_(MAX|MIN|EPSILON)"
    r"|u?int(8|16|32|64|ptr)_t|CUDART_\w+)\b"
)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)

SOUND = 'extern "C" __global__ void k(float* out) { out[threadIdx.x] = 0.5f * out[0]; }'
FAULTY = {
    "error": SOUND.replace("out[0]", "missing"),
    "warning": SOUND.replace("{", "{ int unused;"),
    "double": SOUND.replace("0.5f", "0.1"),
}


@functools.cache
def ask_nvcc(question: str) -> str:
    return subprocess.run(["nvcc", question], capture_output=True, text=True, check=True).stdout


def compile_source(text: str, architecture: str) -> str:
    """Compile a source with nvcc; what it complains of, or nothing.

    Only what passed is remembered, in the temporary folder, by the hash of all that matters.
    """
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if f"sm_{architecture}" not in ask_nvcc("--list-gpu-code").split():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    quick = ("-Ofc=max",) if "--Ofast-compile" in ask_nvcc("--help") else ()
    flags = (*FLAGS, *quick, f"-arch=sm_{architecture}")
    key = hashlib.sha256("\0".join([text, ask_nvcc("--version"), *flags]).encode()).hexdigest()
    passed = host.cache_folder() / f"{key[:32]}.passed"
    if passed.exists():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.cu"
        source.write_text(text)
        done = subprocess.run(
            ["nvcc", *flags, "-o", os.devnull, str(source)], capture_output=True, text=True
        )
    if done.returncode:
        return done.stdout + done.stderr
    passed.touch()
    return ""


def find_foreign(text: str) -> list[str]:
    """Includes and words that NVRTC would not know."""
    code = COMMENT.sub(" ", text)
    return [*re.findall(r"#\s*include.*", code), *(found[0] for found in HOST_WORDS.findall(code))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_sources_compile_without_a_warning(source: Path, architecture: str) -> None:
    complaint = compile_source(source.read_text(), architecture)
    assert not complaint


@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_does_not_compile(fault: str) -> None:
    assert not compile_source(SOUND, "80")
    complaint = compile_source(FAULTY[fault], "80")
    assert fault in complaint.lower() or "error" in complaint


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_sources_are_for_nvrtc(source: Path) -> None:
    assert find_foreign(source.read_text()) == []


@pytest.mark.parametrize(
    ("architecture", "only"),
    [
        ("90", "0"),
        ("90", "8"),
        ("90", "16"),
        ("90", "32"),
        ("90", "64"),
        ("75", "0"),
        ("100", "32"),
    ],
)
def test_bm3d_compiles_as_cupy_compiles_it(architecture: str, only: str) -> None:
    source = (PACKAGE / "kernels" / "bm3d.cu").read_text()
    assert not ask_nvrtc(source, f"-arch=sm_{architecture}", *OPTIONS, f"-DONLY={only}")


def test_what_nvrtc_refuses_is_told() -> None:
    assert "vector" in ask_nvrtc("#include <vector>\n" + SOUND, "-arch=sm_90")
    assert not ask_nvrtc(SOUND, "-arch=sm_90")


def ask_nvrtc(text: str, *options: str) -> str:
    """Compile a source with NVRTC, which needs no card; what it complains of, or nothing."""
    libraries = [
        Path(path) / "lib/libnvrtc.so.13" for path in getattr(nvidia_packages(), "__path__", ())
    ]
    library = next((path for path in libraries if path.exists()), None)
    if library is None:
        pytest.skip("NVRTC is not installed (nvidia-cuda-nvrtc)")
    # Found by name when NVRTC asks for its other half.
    builtins = sorted(library.parent.glob("libnvrtc-builtins.so.*"))[-1]
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    assert not nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"source.cu", 0, None, None
    )
    arguments = [option.encode() for option in options]
    array = (ctypes.c_char_p * len(arguments))(*arguments)
    failed = nvrtc.nvrtcCompileProgram(program, len(arguments), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else ""


def nvidia_packages() -> ModuleType | None:
    """Where libraries from the package index are: ``nvidia/cu13``."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("nvidia.cu13")
    return None


@pytest.mark.parametrize(
    "line",
    [
        "#include <cmath>",
        "# include <cmath>",
        "float x = INFINITY;",
        "uint32_t n;",
        "std::min(1, 2);",
    ],
)
def test_what_nvrtc_does_not_know_is_found(line: str) -> None:
    assert find_foreign(line)
    assert not find_foreign(f"// {line}\n/* {line} */")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_sources_build_on_the_host(source: Path) -> None:
    if (reason := host.why_no_compiler()) is not None:
        pytest.skip(reason)
    assert host.build(source.read_text())


def test_there_are_sources() -> None:
    assert SOURCES
