"""The compiled modules, and what must hold before any of them is used.

Importing this package checks that KIMBERLITE_KERNEL can be met and that our XXH3 agrees
with that of the xxhash package, and raises a subclass of kimberlite.errors.ExtensionError
if not. There is no pure-Python fallback: it would be a hundred times slower and nobody
would notice. The extension modules are independent of each other: each imports without the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import xxhash

from kimberlite.errors import ExtensionError, ExtensionMissingError, SelfTestError

EXTENSIONS = ("append", "checksum", "events", "framing", "metrics", "witness")

# One length at least for every path of the algorithm: empty, 1-3, 4-8, 9-16, 17-128 (four
# depths), 129-240, one block with and without a full last stripe, several blocks.
SELF_TEST_LENGTHS = (0, 1, 3, 4, 8, 9, 16, 17, 33, 65, 97, 128, 129, 160, 240, 241, 256, 1024, 1025, 4999)


class MissingExtensions:
    """Last of all finders: it is asked for an extension module only when none is there."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        package, _, name = fullname.rpartition(".")
        if package == __name__ and name in EXTENSIONS:
            raise missing(fullname) from ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def missing(module: str) -> ExtensionMissingError:
    """The one error for a compiled module that is not there or does not load.

    Its ImportError.name stays None: `from package import module` swallows a
    ModuleNotFoundError that bears the module's name and puts a vaguer one in its place.
    """
    here = Path(__file__).parent
    if (here / "checksum.pyx").exists():  # no installed package has sources of these
        what = (
            f"{here.parents[1]} is a source checkout, and what is installed was not looked at: start Python in another "
            "directory, or with -P; to build in the checkout itself: python setup.py build_ext --inplace"
        )
    else:
        what = (
            "install a wheel of kimberlite-vsr for it, or build one with a C compiler: pip install --force-reinstall ."
        )
    return ExtensionMissingError(
        f"the compiled module {module} cannot be loaded by this interpreter ({EXTENSION_SUFFIXES[0]}): {what}",
        module=module,
    )


def self_test(digest: Callable[[bytes], bytes], kernel: str) -> None:
    """Compare `digest`, our XXH3-128, with the second implementation. Costs 30 us.

    Raises SelfTestError at the first difference: data written with a wrong checksum could
    be read by no other replica, and by no other build.
    """
    message = bytes(n * 167 & 255 for n in range(251)) * 20  # 251 is prime: no period of the stripes
    for length in SELF_TEST_LENGTHS:
        if digest(message[:length]) != xxhash.xxh3_128_digest(message[:length]):
            raise SelfTestError(
                f"XXH3-128 of {length} bytes by the kernel {kernel} differs from the xxhash package {xxhash.VERSION} "
                f"({EXTENSION_SUFFIXES[0]}): do not start a replica with this build; "
                "try KIMBERLITE_KERNEL=scalar, rebuild, and report it",
                kernel=kernel,
                length=length,
            )


def check_checksum() -> None:
    """Import the checksum module, if it is built, and run its self-test."""
    try:
        from kimberlite._fast import checksum
    except ExtensionMissingError:
        return  # whoever asks for it gets this error; the other modules do without
    except ExtensionError:
        raise  # a kernel that cannot be had: says so itself
    except ImportError as error:
        raise missing(f"{__name__}.checksum") from error
    self_test(checksum.xxh3_128, checksum.kernel())


sys.meta_path.append(MissingExtensions())
check_checksum()
