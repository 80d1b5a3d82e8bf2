"""XXH3 against the xxhash package, published vectors and exact buffers; and what import refuses."""

from __future__ import annotations

import array
import importlib.util
import os
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import kimberlite
from kimberlite import _fast, errors
from kimberlite._fast import checksum

CHECKOUT = Path(__file__).parents[2]
C_SOURCES = CHECKOUT / "kimberlite/_fast/c"
PACKAGE = Path(kimberlite.__file__).parent
COMPILER = shutil.which(os.environ.get("CC", "cc"))
IS_X86 = platform.machine() == "x86_64"

KERNELS = checksum.kernels()
PRIME32 = 0x9E3779B1
PRIME64 = 0x9E3779B185EBCA8D


def sanity_buffer(length: int) -> bytes:
    """The message that the reference implementation's self-test hashes prefixes of."""
    message, state = bytearray(), PRIME32
    for _ in range(length):
        message.append(state >> 56)
        state = state * PRIME64 & (1 << 64) - 1
    return bytes(message)


# (length, seed, digest), from the self-test of the reference implementation, xxHash 0.8.
PUBLISHED_64 = [
    (0, 0, 0x2D06800538D394C2),
    (0, PRIME64, 0xA8A6B918B2F0364A),
    (1, 0, 0xC44BDFF4074EECDB),
    (1, PRIME64, 0x032BE332DD766EF8),
    (6, 0, 0x27B56A84CD2D7325),
    (6, PRIME64, 0x84589C116AB59AB9),
    (12, 0, 0xA713DAF0DFBB77E7),
    (12, PRIME64, 0xE7303E1B2336DE0E),
    (24, 0, 0xA3FE70BF9D3510EB),
    (24, PRIME64, 0x850E80FC35BDD690),
    (48, 0, 0x397DA259ECBA1F11),
    (48, PRIME64, 0xADC2CBAA44ACC616),
    (80, 0, 0xBCDEFBBB2C47C90A),
    (80, PRIME64, 0xC6DD0CB699532E73),
    (195, 0, 0xCD94217EE362EC3A),
    (195, PRIME64, 0xBA68003D370CB3D9),
    (403, 0, 0xCDEB804D65C6DEA4),
    (403, PRIME64, 0x6259F6ECFD6443FD),
    (512, 0, 0x617E49599013CB6B),
    (512, PRIME64, 0x3CE457DE14C27708),
    (2048, 0, 0xDD59E2C3A5F038E0),
    (2048, PRIME64, 0x66F81670669ABABC),
    (2240, 0, 0x6E73A90539CF2948),
    (2240, PRIME64, 0x757BA8487D1B5247),
    (2367, 0, 0xCB37AEB9E5D361ED),
    (2367, PRIME64, 0xD2DB3415B942B42A),
]
PUBLISHED_128 = [
    (0, 0, 0x99AA06D3014798D86001C324468D497F),
    (0, PRIME32, 0x92220AE55E14AB505444F7869C671AB0),
    (1, 0, 0xA6CD5E9392000F6AC44BDFF4074EECDB),
    (1, PRIME32, 0x89B99554BA22467CB53D5557E7F76F8D),
    (6, 0, 0x082AFE0B8162D12A3E7039BDDA43CFC6),
    (6, PRIME32, 0x5A865B5389ABD2B1269D8F70BE98856E),
    (12, 0, 0x6E3EFD8FC7802B18061A192713F69AD9),
    (12, PRIME32, 0xD7E09D518A3405D39BE9F9A67F3C7DFB),
    (24, 0, 0x0CE966E4678D37611E7044D28B1B901D),
    (24, PRIME32, 0x3162026714A6A243D7304C54EBAD40A9),
    (48, 0, 0xA002AC4E5478227EF942219AED80F67B),
    (48, PRIME32, 0x163ADDE36C0722957BA3C3E453A1934E),
    (81, 0, 0x4952F58181AB00425E8BAFB9F95FB803),
    (81, PRIME32, 0x2724EC7ADC750FB6703FBB3D7A5F755C),
    (222, 0, 0x337E09641B948717F1AEBD597CEC6B3A),
    (222, PRIME32, 0x91820016621E97F1AE995BB8AF917A8D),
    (403, 0, 0x1B6DE21E332DD73DCDEB804D65C6DEA4),
    (403, PRIME64, 0xBED311971E0BE8F26259F6ECFD6443FD),
    (512, 0, 0x18D2D110DCC9BCA1617E49599013CB6B),
    (512, PRIME64, 0x925D06B8EC5B80403CE457DE14C27708),
    (2048, 0, 0xF736557FD47073A5DD59E2C3A5F038E0),
    (2048, PRIME32, 0x7FB03F7E7186C3EA230D43F30206260B),
    (2240, 0, 0xCCB134FBFA7CE49D6E73A90539CF2948),
    (2240, PRIME32, 0x50A1FE17B338995FED385111126FBA6F),
    (2367, 0, 0xE89C0F6FF369B427CB37AEB9E5D361ED),
]


# --- digests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_published_vectors(kernel: str) -> None:
    message = sanity_buffer(2400)
    for length, seed, digest in PUBLISHED_64:
        assert checksum.xxh3_64_with(kernel, message[:length], seed) == digest, (length, seed)
    for length, seed, digest in PUBLISHED_128:
        assert checksum.xxh3_128_with(kernel, message[:length], seed) == digest.to_bytes(16, "big"), (length, seed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_up_to_4096(kernel: str) -> None:
    message = random.Random(1).randbytes(4096)
    for length in range(4097):
        part = message[:length]
        assert checksum.xxh3_64_with(kernel, part) == xxhash.xxh3_64_intdigest(part), length
        assert checksum.xxh3_128_with(kernel, part) == xxhash.xxh3_128_digest(part), length


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_up_to_1100_with_seeds(kernel: str) -> None:
    message = random.Random(2).randbytes(1100)
    for length in range(1101):
        part = message[:length]
        for seed in (1, 0xFFFFFFFF, 1 << 32, PRIME64, (1 << 64) - 1):
            assert checksum.xxh3_64_with(kernel, part, seed) == xxhash.xxh3_64_intdigest(part, seed), (length, seed)
            assert checksum.xxh3_128_with(kernel, part, seed) == xxhash.xxh3_128_digest(part, seed), (length, seed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_alignment(kernel: str) -> None:
    message = memoryview(random.Random(3).randbytes(9000))
    for offset in range(64):
        for length in (0, 1, 5, 13, 100, 200, 240, 241, 1024, 1025, 2048, 4096, 8111):
            part = message[offset : offset + length]
            assert checksum.xxh3_64_with(kernel, part) == xxhash.xxh3_64_intdigest(part), (offset, length)
            assert checksum.xxh3_128_with(kernel, part) == xxhash.xxh3_128_digest(part), (offset, length)


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_messages(kernel: str) -> None:
    source = random.Random(4)
    message = memoryview(source.randbytes(4 << 20))
    lengths = [source.randrange(4096, 4 << 20) for _ in range(20)] + [4 << 20]
    for length in lengths:
        part = message[-length:]
        assert checksum.xxh3_64_with(kernel, part) == xxhash.xxh3_64_intdigest(part), length
        assert checksum.xxh3_128_with(kernel, part, 7) == xxhash.xxh3_128_digest(part, 7), length


@pytest.mark.parametrize("length", [0, 240, 241, 4 << 20, (4 << 20) + 1])
def test_the_chosen_kernel_with_and_without_the_lock(length: int) -> None:
    message = random.Random(5).randbytes(length)
    assert checksum.xxh3_128(message) == xxhash.xxh3_128_digest(message)
    assert checksum.xxh3_64(message) == xxhash.xxh3_64_intdigest(message)
    assert checksum.xxh3_64(message, seed=9) == xxhash.xxh3_64_intdigest(message, 9)


@given(message=st.binary(max_size=3000), seed=st.integers(0, (1 << 64) - 1))
@settings(max_examples=100, deadline=None)
def test_any_message_and_seed(message: bytes, seed: int) -> None:
    for kernel in KERNELS:
        assert checksum.xxh3_64_with(kernel, message, seed) == xxhash.xxh3_64_intdigest(message, seed)
        assert checksum.xxh3_128_with(kernel, message, seed) == xxhash.xxh3_128_digest(message, seed)


# --- buffers ---------------------------------------------------------------------------------


def test_every_kind_of_contiguous_buffer() -> None:
    message = bytes(range(256)) * 2
    digest = xxhash.xxh3_128_digest(message)
    words = array.array("Q", message)
    square = memoryview(message).cast("B", (16, 32))
    for buffer in (message, bytearray(message), memoryview(message), words, memoryview(words), square):
        assert checksum.xxh3_128(buffer) == digest  # type: ignore[arg-type]
        assert checksum.xxh3_64(buffer) == xxhash.xxh3_64_intdigest(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [2, -1])
def test_a_buffer_with_gaps_is_refused(step: int) -> None:
    view = memoryview(bytes(1000))[::step]
    for refused in (
        lambda: checksum.xxh3_64(view),
        lambda: checksum.xxh3_128(view),
        lambda: checksum.xxh3_64_with("scalar", view),
        lambda: checksum.xxh3_128_with("scalar", view),
    ):
        with pytest.raises(BufferError, match=rf"contiguous.*strides \({step},\).*bytes\(\)"):
            refused()


@pytest.mark.parametrize("value", ["text", 5, None, [1, 2]])
def test_what_is_no_buffer_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        checksum.xxh3_128(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range_is_an_overflow(seed: int) -> None:
    with pytest.raises(OverflowError):
        checksum.xxh3_64(b"", seed)


def test_buffers_are_released() -> None:
    buffer = bytearray(500)
    checksum.xxh3_64(buffer)
    checksum.xxh3_128(buffer)
    checksum.xxh3_64_with("scalar", buffer)
    checksum.xxh3_128_with("scalar", buffer)
    with pytest.raises(BufferError):
        checksum.xxh3_128(memoryview(buffer)[::2])
    before = sys.getrefcount(buffer)
    checksum.xxh3_128(buffer)
    assert sys.getrefcount(buffer) == before
    buffer.append(0)  # refused while any view is open


# --- kernels ---------------------------------------------------------------------------------


def test_kernels_are_named_slowest_first() -> None:
    assert KERNELS[0] == "scalar"
    assert checksum.kernel() in KERNELS
    if "KIMBERLITE_KERNEL" not in os.environ:
        assert checksum.kernel() == KERNELS[-1]
    assert not IS_X86 or KERNELS[:2] == ("scalar", "sse2")


def test_an_unknown_and_a_foreign_kernel_are_different_errors() -> None:
    with pytest.raises(errors.KernelUnknownError, match=r"no checksum kernel 'sse9'.*scalar") as caught:
        checksum.xxh3_64_with("sse9", b"")
    assert caught.value.kernel == "sse9"
    foreign = "neon" if IS_X86 else "avx2"
    with pytest.raises(errors.KernelNotBuiltError, match=foreign):
        checksum.xxh3_128_with(foreign, b"")


def run(code: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that imports what this one does, or from `path` first."""
    search = [str(path)] if path else []
    search += [entry for entry in sys.path if entry]
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_demand_is_met(kernel: str) -> None:
    done = run("from kimberlite._fast import checksum; print(checksum.kernel())", KIMBERLITE_KERNEL=kernel)
    assert (done.returncode, done.stdout) == (0, f"{kernel}\n"), done.stderr


def test_an_empty_demand_is_none() -> None:
    done = run("from kimberlite._fast import checksum; print(checksum.kernel())", KIMBERLITE_KERNEL="")
    assert done.stdout == f"{KERNELS[-1]}\n", done.stderr


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("turbo", "KernelUnknownError"),
        ("AVX2", "KernelUnknownError"),
        ("neon" if IS_X86 else "avx2", "KernelNotBuiltError"),
    ],
)
def test_a_demand_that_cannot_be_met_fails_the_import(kernel: str, error: str) -> None:
    done = run("import kimberlite._fast", KIMBERLITE_KERNEL=kernel)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"kimberlite.errors.{error}: ") and repr(kernel) in last


# --- what import refuses ---------------------------------------------------------------------


def test_self_test_passes_for_every_kernel() -> None:
    for kernel in KERNELS:
        _fast.self_test(lambda message, kernel=kernel: checksum.xxh3_128_with(kernel, message), kernel)


@pytest.mark.parametrize("length", _fast.SELF_TEST_LENGTHS)
def test_self_test_finds_a_difference_at_any_of_its_lengths(length: int) -> None:
    def digest(message: bytes) -> bytes:
        return checksum.xxh3_128(message) if len(message) != length else bytes(16)

    with pytest.raises(errors.SelfTestError, match=rf"{length} bytes.*scalar.*do not start") as caught:
        _fast.self_test(digest, "scalar")
    assert (caught.value.length, caught.value.kernel) == (length, "scalar")


def partial_package(at: Path, *extensions: str) -> Path:
    """A copy of the package that has only these compiled modules."""
    fast = at / "kimberlite" / "_fast"
    fast.mkdir(parents=True)
    (at / "kimberlite/__init__.py").touch()
    for name in ("errors.py", "types.py", "_fast/__init__.py"):
        shutil.copy(PACKAGE / name, at / "kimberlite" / name)
    for extension in extensions:
        [built] = (PACKAGE / "_fast").glob(f"{extension}.*.so")
        shutil.copy(built, fast)
    return at


@pytest.mark.parametrize("statement", ["from kimberlite._fast import {}", "import kimberlite._fast.{}"])
@pytest.mark.parametrize("name", [name for name in _fast.EXTENSIONS if name != "checksum"])
def test_a_missing_extension_is_one_clear_error(name: str, statement: str, tmp_path: Path) -> None:
    done = run(statement.format(name), partial_package(tmp_path, "checksum"))
    assert done.returncode == 1
    assert f"ModuleNotFoundError: No module named 'kimberlite._fast.{name}'" in done.stderr  # the original, chained
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"kimberlite.errors.ExtensionMissingError: the compiled module kimberlite._fast.{name}")
    assert "pip install" in last and ".so" in last


def test_a_checkout_that_is_in_the_way_of_the_installed_package_is_named(tmp_path: Path) -> None:
    at = partial_package(tmp_path)
    (at / "kimberlite/_fast/checksum.pyx").touch()
    last = run("from kimberlite._fast import checksum", at).stderr.splitlines()[-1]
    assert f"{at} is a source checkout" in last and "-P" in last and "pip install" not in last


def test_a_missing_checksum_module_concerns_only_who_asks_for_it(tmp_path: Path) -> None:
    at = partial_package(tmp_path)
    assert run("import kimberlite._fast", at).returncode == 0
    done = run("from kimberlite._fast import checksum", at)
    assert "ExtensionMissingError: the compiled module kimberlite._fast.checksum" in done.stderr.splitlines()[-1]
    assert "No module named 'kimberlite._fast.nonsense'" in run("import kimberlite._fast.nonsense", at).stderr


def test_an_extension_that_does_not_load_is_reported_with_its_cause(tmp_path: Path) -> None:
    at = partial_package(tmp_path, "checksum")
    [built] = (at / "kimberlite/_fast").glob("checksum.*.so")
    built.write_bytes(b"\x7fELF, but no more")
    done = run("import kimberlite._fast", at)
    assert "ImportError: " in done.stderr and built.name in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kimberlite.errors.ExtensionMissingError: ")


# --- the C below -----------------------------------------------------------------------------


def compile_check(at: Path, *flags: str) -> Path:
    """Build tests/c/check_xxh3.c with the kernels, or skip."""
    if COMPILER is None or not C_SOURCES.exists():
        pytest.skip("needs a C compiler and the sources")
    program = at / "check_xxh3"
    sources = [str(CHECKOUT / "tests/c/check_xxh3.c"), str(C_SOURCES / "km_xxh3.c")]
    command = [
        COMPILER,
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        f"-I{C_SOURCES}",
        *sources,
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    return program


def test_no_kernel_reads_outside_of_its_message(tmp_path: Path) -> None:
    sanitizers = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = subprocess.run([compile_check(tmp_path, *sanitizers)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(done.stdout.split()) == KERNELS


@pytest.mark.skipif(not IS_X86, reason="x86-64 kernels")
def test_an_old_processor_gets_the_kernels_it_can_run(tmp_path: Path) -> None:
    program = compile_check(tmp_path, "-O1", "-include", str(CHECKOUT / "tests/c/cpu_without_vectors.h"))

    def answer(kernel: str) -> str:
        environment = {**os.environ, "KIMBERLITE_KERNEL": kernel}
        return subprocess.run([program, "demand"], env=environment, capture_output=True, text=True, check=True).stdout

    assert answer("") == "sse2 0\n"
    assert answer("scalar") == "scalar 0\n"
    assert answer("avx512") == answer("avx2") == "sse2 -3\n"
    assert answer("neon") == "sse2 -2\n"
    assert answer("turbo") == "sse2 -1\n"


def load_extension(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kimberlite._fast.checksum", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not IS_X86, reason="x86-64 kernels")
def test_a_kernel_that_the_processor_lacks_is_an_error_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("Cython", reason="builds the extension for a processor without vectors")
    if COMPILER is None or not (CHECKOUT / "setup.py").exists():
        pytest.skip("needs a C compiler and the sources")
    stand_in = CHECKOUT / "tests/c/cpu_without_vectors.h"
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "--build-lib",
            str(tmp_path),
            "--build-temp",
            str(tmp_path / "o"),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "CFLAGS": f"-O0 -include {stand_in}", "KIMBERLITE_EXTENSIONS": "checksum"},
        check=True,
        capture_output=True,
    )
    [built] = tmp_path.glob("kimberlite/_fast/checksum.*.so")
    old = load_extension(built)
    assert old.kernels() == ("scalar", "sse2")
    with pytest.raises(errors.KernelUnsupportedError, match=r"'avx2' needs instructions.*scalar, sse2") as caught:
        old.xxh3_64_with("avx2", b"")
    assert caught.value.kernel == "avx2"

    [installed] = (PACKAGE / "_fast").glob("checksum.*.so")
    at = partial_package(tmp_path / "package")
    shutil.copy(built, at / "kimberlite/_fast" / installed.name)
    done = run("import kimberlite._fast", at, KIMBERLITE_KERNEL="avx512")
    assert done.stderr.splitlines()[-1].startswith("kimberlite.errors.KernelUnsupportedError: "), done.stderr
