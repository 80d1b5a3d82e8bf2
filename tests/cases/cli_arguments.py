"""Arguments that nobody can mean were taken: a backup into `s3:/bucket` went into a directory of that name, NaN was a
timeout, 2^64 a position. Now each is refused with exit code 2 and a word that says why; a line that is too long is
named by number and size."""

from __future__ import annotations

from lab import Case, main

SECONDS = 60
SAMPLE = True

USAGE, TOO_LARGE = 2, 3
NUMBERS = ("nan", "inf", "-1", "18446744073709551616")


def run(case: Case) -> None:
    data = case.directory / "data"
    unsafe = [part for setting in case.storage_settings for part in ("--set", setting)]
    who = ("--cluster", "0123456789abcdef0123456789abcdef", "--replica", "0", "--addresses", "127.0.0.1:7100")
    case.command("format", *who, *unsafe, "--set", "storage.segment_bytes=8388608", str(data), check=True)
    for where in ("s3:/bucket/a", "s3:bucket", "S3://bucket/a", "file:///tmp/a"):
        done = case.command("backup", str(data), where, cwd=case.directory)
        case.check(done.returncode == USAGE, f"backup into {where}: exit code {done.returncode}, {done.stderr!r}")
        case.check("s3://bucket/prefix" in done.stderr, f"backup into {where} says {done.stderr!r}")
    for option, command in (("--timeout", "status"), ("--from", "read"), ("--limit", "read"), ("--port", "dev")):
        for number in NUMBERS:
            done = case.command(command, f"{option}={number}", cwd=case.directory)
            case.check(done.returncode == USAGE, f"{command} {option}={number}: exit code {done.returncode}")
            case.check(option in done.stderr, f"{command} {option}={number} says {done.stderr!r}")
    lines = case.directory / "lines"
    lines.write_bytes(b"short\n" * 70_000 + b"x" * (3 << 20) + b"\nshort\n")
    done = case.command("append", str(lines))
    case.check(done.returncode == TOO_LARGE, f"a long line: exit code {done.returncode}, {done.stderr!r}")
    case.check(f"line 70001 has {3 << 20} bytes" in done.stderr, f"a long line: {done.stderr!r}")


if __name__ == "__main__":
    main(run)
