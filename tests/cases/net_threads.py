"""No thread for the next segment ended a replica. It is as a full disk: refused, and accepted again by itself.

The replica runs as a user whose other process takes all threads that the user may have. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from lab import Case, main, until

SECONDS = 120
SAMPLE = False
NOBODY = 65_531  # a number that nobody has
MIB = 1 << 20
THREADS = 60  # of the user; the replica has about ten
BALLAST = """
import threading, time
for _ in range(100): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print(flush=True)
time.sleep(1000)
"""


def run(case: Case) -> None:
    if os.geteuid():
        case.say("needs root: nothing was tried")
        return
    cluster = case.cluster(1, "telemetry.enabled=false", start=False)
    # Another user, because root has no limit; one that may read what only root may, an interpreter for one.
    prefix = ["setpriv", f"--reuid={NOBODY}", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    if shutil.which(prefix[0]) is None:
        case.say("needs setpriv: nothing was tried")
        return
    os.chmod(case.directory, 0o755)
    for root, directories, files in os.walk(cluster.root):
        for name in ("", *directories, *files):
            os.chown(os.path.join(root, name), NOBODY, -1)
    cluster.start(0, ["prlimit", f"--nproc={THREADS}", *prefix, "--clear-groups"])
    cluster.wait()
    cluster.append([b"before"])
    ballast = subprocess.Popen([*prefix, "--clear-groups", sys.executable, "-c", BALLAST], stdout=subprocess.PIPE)
    case.own(ballast)
    assert ballast.stdout is not None
    ballast.stdout.readline()
    refused = ""
    for number in range(30):
        done = case.command("append", "--addresses", cluster.addresses[0], "--timeout", "3", input="x" * (MIB - 100))
        if done.returncode:
            refused = done.stderr
            case.say(f"append {number}: exit code {done.returncode}: {refused.strip()[:200]}")
            break
    case.check(cluster.exit_codes == [None], f"the replica ended: {cluster.exit_codes}: {cluster.log(0)[-400:]}")
    case.check(refused, "there was a thread for every segment: nothing was tried")
    status = cluster.tells(0)
    case.check(status["storage"]["full"], f"status says why: {status['unhealthy']}")
    case.say(f"status: {status['unhealthy']}")
    ballast.kill()
    ballast.wait()
    case.check(until(lambda: cluster.append([b"y" * MIB], timeout=10) > 0, 10), "appends are accepted again")


if __name__ == "__main__":
    main(run)
