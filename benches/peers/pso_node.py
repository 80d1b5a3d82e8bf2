"""One PySyncObj replica, told on standard input what to do.

    pso_node.py INDEX PORT,PORT,PORT DIRECTORY lazy|fsync single|batch

Lines in: "leader" answers {"leader": bool, "ready": bool}; "run CONCURRENCY
SIZE WARMUP_S SECONDS" keeps that many appends in flight on this replica and
answers with the figures. Every answer is one line of JSON.

The journal of PySyncObj is a memory map that nothing in the library flushes.
With "fsync" this program flushes it before the replica sends any message, so
that an entry is on disk on a replica before that replica's vote for it leaves.
"single" sends each entry at once, which is best with one append in flight;
"batch" gathers entries for a millisecond, which is best with many.
"""

import json
import sys
import threading
import time

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.transport import TCPTransport
from pysyncobj.version import VERSION

BATCHING = {
    "single": {"appendEntriesUseBatch": False},
    "batch": {"appendEntriesUseBatch": True, "appendEntriesPeriod": 0.001},
}


def flush_before_send():
    dirty = set()
    plain_add, plain_send = FileJournal.add, TCPTransport.send

    def add(self, command, idx, term):
        plain_add(self, command, idx, term)
        dirty.add(self)

    def send(self, node, message):
        while dirty:
            dirty.pop().flush()
        return plain_send(self, node, message)

    FileJournal.add, TCPTransport.send = add, send


class Log(SyncObj):
    def __init__(self, index, ports, directory, batching):
        addresses = [f"127.0.0.1:{port}" for port in ports]
        conf = SyncObjConf(
            journalFile=f"{directory}/journal",
            fullDumpFile=f"{directory}/dump",
            **batching,
        )
        others = [a for i, a in enumerate(addresses) if i != index]
        super().__init__(addresses[index], others, conf=conf)
        self.count = 0

    @replicated
    def append(self, payload):
        self.count += 1
        return self.count


class Load:
    """A closed loop of appends: an answer sends the next one."""

    def __init__(self, log, concurrency, size, warmup, seconds):
        self.log, self.payload = log, b"x" * size
        self.lock = threading.Lock()
        self.latencies, self.errors, self.in_flight = [], 0, concurrency
        self.count_from = time.perf_counter() + warmup
        self.stop = self.count_from + seconds
        self.last = self.count_from
        self.done = threading.Event()

    def send(self):
        sent = time.perf_counter()

        def answered(_result, error):
            now = time.perf_counter()
            with self.lock:
                if error:
                    self.errors += 1
                elif now >= self.count_from:
                    self.latencies.append(now - sent)
                    self.last = now
                if now >= self.stop:
                    self.in_flight -= 1
                    if not self.in_flight:
                        self.done.set()
                    return
            self.send()

        self.log.append(self.payload, callback=answered)

    def figures(self):
        for _ in range(self.in_flight):
            self.send()
        self.done.wait(self.stop - time.perf_counter() + 15)
        lat = sorted(self.latencies)
        return {
            "n": len(lat),
            "ops_per_s": len(lat) / (self.last - self.count_from) if lat else 0,
            "p50_ms": lat[len(lat) // 2] * 1e3 if lat else None,
            "p99_ms": lat[len(lat) * 99 // 100] * 1e3 if lat else None,
            "errors": self.errors,
            "unanswered": self.in_flight,
        }


def main():
    index, ports, directory, durability, batching = sys.argv[1:]
    if durability == "fsync":
        flush_before_send()
    log = Log(int(index), [int(p) for p in ports.split(",")], directory, BATCHING[batching])
    for line in sys.stdin:
        words = line.split()
        if words[0] == "leader":
            answer = {
                "leader": log._getLeader() == log.selfNode,
                "ready": log.isReady(),
                "version": VERSION,
            }
        else:
            load = Load(log, int(words[1]), int(words[2]), float(words[3]), float(words[4]))
            answer = load.figures()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
