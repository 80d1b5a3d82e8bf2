"""`cluster.bind="::"` served IPv6 alone. It serves both families, and may stand in brackets."""

from __future__ import annotations

from lab import Case, Raw, main, until

SECONDS = 40
SAMPLE = True


def run(case: Case) -> None:
    for bind in ("::", "[::]"):
        cluster = case.cluster(1, f'cluster.bind="{bind}"', "telemetry.enabled=false", start=False)
        cluster.start(0)
        for host in ("::1", "127.0.0.1"):

            def answers(host: str = host, port: int = cluster.ports[0]) -> bool:
                try:
                    with Raw(host, port) as raw:
                        raw.greet()
                except OSError:
                    return False
                return True

            case.check(until(answers, 5), f"bound to {bind}, it is not reached at {host}: {cluster.log(0)[-200:]}")
        cluster.stop(0)


if __name__ == "__main__":
    main(run)
