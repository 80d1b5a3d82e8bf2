"""Idle connections, as many as there are places, made /livez fail with 503: a supervisor restarts a healthy replica for
that. An idle cluster scrubbed its few sectors 16 times a second. Other verbs got 501 and a page of HTML."""

from __future__ import annotations

import re
import socket
import time

from lab import HOST, Case, main

SECONDS = 60
SAMPLE = True

IDLE = 100
WATCHED_S = 3.0


def run(case: Case) -> None:
    cluster = case.cluster(1)
    cluster.append([b"event"] * 3)
    port = cluster.telemetry_ports[0]
    idle = [socket.create_connection((HOST, port), 10) for _ in range(IDLE)]
    time.sleep(0.5)  # until they have their places
    answers = [cluster.scrape(0, path).split(" ", 2)[1] for path in ("/livez", "/readyz", "/metrics", "/livez")]
    case.say(f"with {IDLE} idle connections /livez, /readyz, /metrics, /livez answer {', '.join(answers)}")
    case.check(set(answers) == {"200"}, f"with {IDLE} idle connections they answer {', '.join(answers)}")
    for connection in idle:
        connection.close()

    with socket.create_connection((HOST, port), 10) as connection:
        connection.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    case.check(answer.startswith("HTTP/1.1 405 "), f"POST is answered with {answer.splitlines()[0]}")
    case.check("\r\nAllow: GET, HEAD\r\n" in answer, "405 without Allow")

    def tours() -> float:
        (found,) = re.findall(r"^vsr_scrub_tours_completed_total\{\S*\} (\S+)$", cluster.scrape(0), re.MULTILINE)
        return float(found)

    before = tours()
    time.sleep(WATCHED_S)
    made = tours() - before
    case.say(f"an idle replica made {made:.0f} tours over its disk in {WATCHED_S:.0f} s")
    case.check(made <= 1, f"an idle replica made {made:.0f} tours in {WATCHED_S:.0f} s")
    last = cluster.tells(0)["scrub"]["last_tour_s"]
    case.check(last is not None and last >= 0, f"status says of the last tour: {last}")
    bounds = set(re.findall(r'le="([^"]+)"', cluster.scrape(0)))
    case.check("1.0" in bounds and "1" not in bounds and "15.0" in bounds, f"bounds of buckets: {sorted(bounds)}")


if __name__ == "__main__":
    main(run)
