"""Extension modules and build switches; all metadata is in pyproject.toml.

KIMBERLITE_BUILD   release (default), debug, sanitize (ASan and UBSan), trace (Cython line tracing)
KIMBERLITE_EXTENSIONS   build only these, comma-separated (names without the package)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = Path(__file__).parent
FAST = Path("kimberlite/_fast")

if not sys.platform.startswith("linux") or sys.maxsize < 2**32 or sys.byteorder != "little":
    raise SystemExit(
        f"kimberlite builds on 64-bit little-endian Linux only (this is {sys.platform}, {sys.byteorder}-endian)"
    )

MODES = {
    "release": ["-O3", "-g", "-fno-omit-frame-pointer"],
    "debug": ["-O0", "-g3", "-fno-omit-frame-pointer"],
    "sanitize": [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
    "trace": ["-O1", "-g", "-DCYTHON_TRACE_NOGIL=1", "-DCYTHON_USE_SYS_MONITORING=0"],
}
mode = os.environ.get("KIMBERLITE_BUILD", "release")
if mode not in MODES:
    raise SystemExit(f"KIMBERLITE_BUILD={mode!r}: use one of {', '.join(MODES)}")
COMPILE = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread", *MODES[mode]]
LINK = ["-pthread", *(flag for flag in MODES[mode] if flag.startswith("-fsanitize="))]

only = [name for name in os.environ.get("KIMBERLITE_EXTENSIONS", "").split(",") if name]

# Each extension: its .pyx and the Python-free C kernels behind it.
KERNELS = {
    "checksum": ["km_xxh3.c"],
    "framing": ["km_frame.c", "km_xxh3.c"],
    "events": ["km_events.c"],
    "append": ["km_append.c"],
    "metrics": ["km_metrics.c", "km_xxh3.c"],
    "witness": ["km_witness.c", "km_frame.c", "km_xxh3.c"],
}
extensions = [
    Extension(
        f"kimberlite._fast.{name}",
        [str(FAST / f"{name}.pyx"), *(str(FAST / "c" / kernel) for kernel in kernels)],
        include_dirs=[str(FAST / "c")],
        depends=[str(path) for path in (HERE / FAST / "c").glob("*.h")],
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )
    for name, kernels in KERNELS.items()
    if (not only or name in only)
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        annotate=bool(os.environ.get("KIMBERLITE_ANNOTATE")),
        compiler_directives={"language_level": 3, "linetrace": mode == "trace", "embedsignature": True},
    ),
    cffi_modules=[] if only and "_sys" not in only else ["kimberlite/_sys/_build.py:ffibuilder"],
)
