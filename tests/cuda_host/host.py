"""Builds CUDA sources with g++ and launches their kernels on fibres of one host thread."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda_host.guards import GuardedCopy

HEADER = Path(__file__).with_name("cuda_host.h")
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-exceptions"),
    *("-ffp-contract=off", "-fno-math-errno", "-U_FORTIFY_SOURCE"),
    *("-fsanitize=bounds,shift,integer-divide-by-zero", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"),
    "-Wframe-larger-than=131072",
)
DTYPES: Mapping[str, tuple[type, ...]] = {
    "float": (np.float32,),
    "double": (np.float64,),
    "int": (np.int32,),
    "unsigned": (np.uint32,),
    "unsigned int": (np.uint32,),
    "short": (np.int16,),
    "unsigned short": (np.uint16, np.float16),
    "signed char": (np.int8,),
    "unsigned char": (np.uint8, np.bool_),
    "long long": (np.int64,),
    "unsigned long long": (np.uint64,),
    "float2": (np.float32, np.complex64),
    "float4": (np.float32,),
    "int2": (np.int32,),
    "int4": (np.int32,),
    "uint2": (np.uint32,),
    "uint4": (np.uint32,),
}
VECTOR_BYTES = {"float2": 8, "float4": 16, "int2": 8, "int4": 16, "uint2": 8, "uint4": 16}
MAX_THREADS = 1024
MAX_SHARED_BYTES = 232448
KERNEL = re.compile(r'extern\s*"C"\s*__global__([^;{]*?)(\w+)\s*\(([^()]*)\)\s*\{')
# Faults of a launch are caught for the whole process, so launches take turns.
TURN = threading.Lock()
KERNEL_LINKAGE = re.compile(r'extern\s*"C"\s*__global__')
FAULT = re.compile(r"0x[0-9a-f]+")
BOUNDS = re.compile(r"__launch_bounds__\s*\(([^,()]+|[^,]*?\([^()]*\)[^,()]*)(?:,[^)]*)?\)")
EXTERN_SHARED = re.compile(
    r"extern\s+__shared__\s+((?:__align__\s*\(\s*\d+\s*\)\s*)?)([\w\s]+?)\s*(\w+)\s*\[\s*\]\s*;"
)


class BuildError(Exception):
    """g++ refuses the source, or a kernel's parameters have types that a launch cannot pass."""


class LaunchError(Exception):
    """Arguments do not fit the kernel, or its threads did what a card leaves undefined."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: ``const float* x`` is ("float", "x", is_pointer, is_const)."""

    type: str
    name: str
    is_pointer: bool
    is_const: bool

    @property
    def declared(self) -> str:
        """Its type, as the launcher casts to it."""
        if not self.is_pointer:
            return self.type
        return f"{'const ' if self.is_const else ''}{self.type}*"


def why_no_compiler() -> str | None:
    """Say why sources cannot be built here; None where they can."""
    if platform.system() != "Linux":
        return "kernels run on the host on Linux alone"
    return None if shutil.which("g++") else "g++ is not installed"


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Flags for instructions that only some machines have: the fused multiply-add."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ()
    return ("-mfma",) if platform.machine() == "x86_64" and "fma" in words else ()


def run_compiler(arguments: Sequence[str], text: str) -> str:
    """Run g++ on ``text``; what it printed."""
    done = subprocess.run(
        ["g++", *arguments, "-x", "c++", "-"], input=text, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(done.stderr)
    return done.stdout


def parse_parameter(text: str, kernel: str) -> Parameter:
    """Read one declaration, such as ``const float* __restrict__ images``."""
    words = re.sub(r"__restrict__|\brestrict\b", " ", text).replace("*", " * ").split()
    is_const = "const" in words
    is_pointer = "*" in words
    words = [word for word in words if word not in ("const", "*")]
    base, name = " ".join(words[:-1]), words[-1]
    if base not in DTYPES or text.count("*") > 1:
        raise BuildError(f"{kernel}: no launch can pass {text.strip()!r}")
    return Parameter(base, name, is_pointer, is_const)


def parse_kernels(text: str) -> dict[str, tuple[str, tuple[Parameter, ...]]]:
    """Kernels of a preprocessed source: name -> (launch bound or "", parameters)."""
    kernels = {}
    for words, name, parameters in KERNEL.findall(text):
        bound = BOUNDS.search(words)
        listed = [part for part in parameters.split(",") if part.strip() not in ("", "void")]
        kernels[name] = (
            bound.group(1).strip() if bound else "",
            tuple(parse_parameter(part, name) for part in listed),
        )
    if text.count("__global__") != len(kernels):
        raise BuildError('every kernel must be declared extern "C" __global__ void name(...) {')
    return kernels


def write_launcher(name: str, bound: str, parameters: Sequence[Parameter]) -> str:
    """C++ of the function that a launch calls."""
    arguments = ", ".join(
        f"*static_cast<{parameter.declared}*>(arguments[{i}])"
        for i, parameter in enumerate(parameters)
    )
    return f"""
CUDA_HOST_EXPORT int bound_{name}() {{ return {bound or MAX_THREADS}; }}
CUDA_HOST_EXPORT const char* launch_{name}(
    const cuda_host::Launch* launch, [[maybe_unused]] void** arguments) {{
    auto body = [=] {{ {name}({arguments}); }};
    return cuda_host::run(*launch, "{name}", body);
}}
"""


def compose_unit(source: str) -> str:
    """One C++ source: the header, the preprocessed CUDA source, and launchers."""
    shared = EXTERN_SHARED.sub(
        r"\2* const \3 = reinterpret_cast<\2*>(cuda_host::dynamic_shared);", source
    )
    launchers = [
        write_launcher(name, bound, parameters)
        for name, (bound, parameters) in parse_kernels(source).items()
    ]
    # Without linkage, kernels may be called as functions of the C library are, and shared arrays of
    # templates can lie in the one section as well.
    inner = KERNEL_LINKAGE.sub("__global__", shared)
    return "\n".join(
        [f'#include "{HEADER}"', "namespace {", inner, "}", '# 1 "launchers"', *launchers]
    )


def cache_folder() -> Path:
    """Where what was built is kept for later runs."""
    folder = Path(tempfile.gettempdir()) / f"emdask-cuda-on-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build_library(unit: str, flags: Sequence[str]) -> Path:
    """Build a unit once; its library lies in the temporary folder under the hash of all of it."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
    key = "\0".join([unit, HEADER.read_text(), version, *flags])
    folder = cache_folder()
    library = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    with library.with_suffix(".lock").open("w") as lock:
        # Another process that builds the same may save this one the work.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / "kernels"
                run_compiler([*flags, "-c", "-o", f"{built}.o"], unit)
                # Linked without the checks' own library: the header has their handlers.
                link = ["g++", "-shared", "-Wl,-z,defs", "-o", f"{built}.so", f"{built}.o"]
                subprocess.run(link, check=True)
                os.replace(f"{built}.so", library)
    return library


@functools.cache
def build(source: str, options: tuple[str, ...] = ()) -> dict[str, Kernel]:
    """Build a CUDA source that includes nothing.

    Parameters
    ----------
    source
        Text of the source.
    options
        Macros, as ``-DNAME=value``.

    Returns
    -------
    dict of str to Kernel
        By name.

    Raises
    ------
    BuildError
        If g++ refuses it, warnings being errors.
    """
    macros = [option for option in options if option.startswith("-D")]
    preprocessed = run_compiler(["-std=c++17", "-E", *macros], source).replace("<stdin>", "source")
    unit = compose_unit(preprocessed)
    library = ctypes.CDLL(str(build_library(unit, [*FLAGS, *machine_flags()])))
    return {
        name: Kernel(name, parameters, library)
        for name, (_, parameters) in parse_kernels(preprocessed).items()
    }


class Geometry(ctypes.Structure):
    """`cuda_host::Launch`."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_uint),
    )


def triple(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    """Sizes along x, y and z; those not given are 1."""
    given = (sizes,) if isinstance(sizes, int) else tuple(int(size) for size in sizes)
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


class Memory:
    """Where the arrays of a launch lie.

    Parameters
    ----------
    guarded
        Whether they are copied between guards.
    """

    def __init__(self, guarded: bool) -> None:
        self._guarded = guarded
        self._copies: dict[int, GuardedCopy] = {}
        self._arrays: list[tuple[str, int, int]] = []

    def place(self, parameter: Parameter, array: np.ndarray[Any, Any]) -> int:
        """Address for the kernel; an array that is given twice keeps one address."""
        if array.size == 0:
            return 0
        address = array.ctypes.data
        if self._guarded:
            if address not in self._copies:
                plain = array.view(np.ndarray)
                self._copies[address] = GuardedCopy(plain, parameter.is_const)
            address = self._copies[address].address
        self._arrays.append((parameter.name, address, array.nbytes))
        return address

    def explain(self, message: str) -> str:
        """Name the array that is nearest to the address in a message."""
        found = FAULT.search(message)
        if found is None or not self._arrays:
            return message
        at = int(found.group(), 16)
        name, start, n_bytes = min(
            self._arrays, key=lambda array: max(array[1] - at, at - array[1] - array[2])
        )
        return f"{message} That is byte {at - start} of {name}, which has {n_bytes} bytes."

    def finish(self, kernel: str) -> None:
        """Copy results back from between the guards, unless a guard was written to."""
        names = {address: (name, n_bytes) for name, address, n_bytes in self._arrays}
        for copy in self._copies.values():
            if (at := copy.finish()) is not None:
                name, n_bytes = names[copy.address]
                raise LaunchError(
                    f"{kernel}: a thread wrote at byte {at} of {name}, which has {n_bytes} bytes."
                )


class Kernel:
    """A kernel of a library.

    Parameters
    ----------
    name, parameters
        As declared in the source.
    library
        That `build` made.
    """

    def __init__(self, name: str, parameters: tuple[Parameter, ...], library: ctypes.CDLL) -> None:
        self.name = name
        self.parameters = parameters
        self.max_threads: int = getattr(library, f"bound_{name}")()
        self._run = getattr(library, f"launch_{name}")
        self._run.restype = ctypes.c_char_p

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        order: int = 0,
        guarded: bool = False,
    ) -> None:
        """Run all blocks.

        Parameters
        ----------
        grid, block
            Blocks of the grid, threads of a block: a number or up to three.
        arguments
            C-contiguous arrays for pointers, NumPy scalars or Python ints for numbers.
        shared_bytes
            Of dynamic shared memory.
        order
            0 runs lanes and blocks in ascending order; others shuffle lanes and warps by this
            seed and run blocks backwards.
        guarded
            Run on copies of the arrays that lie between guards, so that reading or writing past
            their ends, or writing to const arrays, is an error.

        Raises
        ------
        LaunchError
            If anything does not fit, or threads diverged at a collective, or touched memory
            that is not theirs.
        """
        geometry = Geometry(triple(grid), triple(block), shared_bytes, order)
        self._check_geometry(geometry)
        if len(arguments) != len(self.parameters):
            raise LaunchError(
                f"{self.name}: takes {len(self.parameters)} arguments; got {len(arguments)}."
            )
        memory = Memory(guarded)
        values = [
            self._convert(parameter, argument, memory)
            for parameter, argument in zip(self.parameters, arguments, strict=True)
        ]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(value.ctypes.data for value in values))
        with TURN:
            message = self._run(ctypes.byref(geometry), pointers)
        if message is not None:
            raise LaunchError(memory.explain(message.decode()))
        memory.finish(self.name)

    def _check_geometry(self, geometry: Geometry) -> None:
        n_threads = int(np.prod(geometry.block))
        limits = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))
        for what, sizes, most in zip(
            ("grid", "block"), (geometry.grid, geometry.block), limits, strict=True
        ):
            if not all(1 <= size <= limit for size, limit in zip(sizes, most, strict=True)):
                raise LaunchError(
                    f"{self.name}: {what} must lie in 1 to {most}; got {tuple(sizes)}."
                )
        if n_threads > self.max_threads:
            raise LaunchError(
                f"{self.name}: a block has at most {self.max_threads} threads; got {n_threads}."
            )
        if geometry.shared_bytes > MAX_SHARED_BYTES:
            raise LaunchError(
                f"{self.name}: a block has at most {MAX_SHARED_BYTES} bytes of dynamic shared"
                f" memory; got {geometry.shared_bytes}."
            )

    def _convert(self, parameter: Parameter, argument: Any, memory: Memory) -> np.ndarray[Any, Any]:
        """Bytes of an argument, as the launcher reads them."""
        dtypes = DTYPES[parameter.type]
        what = f"{self.name}: {parameter.name}"
        if parameter.is_pointer:
            check_array(what, parameter, argument)
            return np.array(memory.place(parameter, argument), np.uintp)
        if type(argument) is int and np.issubdtype(dtypes[0], np.integer):
            limits = np.iinfo(dtypes[0])
            if limits.min <= argument <= limits.max:
                return np.array(argument, dtypes[0])
        if isinstance(argument, np.generic) and argument.dtype == dtypes[0]:
            return np.array(argument)
        raise LaunchError(
            f"{what} must be a {parameter.type}, which is np.{dtypes[0].__name__};"
            f" got {argument!r} ({type(argument).__name__})."
        )


def check_array(what: str, parameter: Parameter, array: Any) -> None:
    """Refuse an array that the kernel would misread."""
    dtypes = DTYPES[parameter.type]
    if not isinstance(array, np.ndarray):
        raise LaunchError(f"{what} must be an array; got {array!r}.")
    if array.dtype not in dtypes:
        names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise LaunchError(f"{what} must be an array of {names}; got {array.dtype}.")
    if not array.flags.c_contiguous:
        raise LaunchError(f"{what} must be C-contiguous; got strides {array.strides}.")
    if not (parameter.is_const or array.flags.writeable):
        raise LaunchError(f"{what} is written to; got an array that cannot be written.")
    alignment = VECTOR_BYTES.get(parameter.type, array.dtype.itemsize)
    if array.size and array.ctypes.data % alignment:
        raise LaunchError(f"{what} must be aligned to {alignment} bytes.")
