"""TigerBeetle transfers through its official Python client.

    tb_client.py ADDRESSES CONCURRENCY WARMUP_S SECONDS

One client object with CONCURRENCY coroutines, each with one transfer in
flight; the client library merges what waits into shared requests. Prints one
JSON object. The client library prints its own notices on standard error.
"""

import asyncio
import json
import sys
import time

import tigerbeetle as tb


async def main(addresses, concurrency, warmup, seconds):
    latencies, errors = [], 0
    async with tb.ClientAsync(cluster_id=0, replica_addresses=addresses) as client:
        debit, credit = tb.id(), tb.id()
        await client.create_accounts([tb.Account(id=i, ledger=1, code=1) for i in (debit, credit)])
        count_from = time.perf_counter() + warmup
        stop = count_from + seconds
        last = count_from

        async def loop():
            nonlocal errors, last
            while (sent := time.perf_counter()) < stop:
                results = await client.create_transfers(
                    [
                        tb.Transfer(
                            id=tb.id(),
                            debit_account_id=debit,
                            credit_account_id=credit,
                            amount=1,
                            ledger=1,
                            code=1,
                        )
                    ]
                )
                now = time.perf_counter()
                if any(r.status != tb.CreateTransferStatus.CREATED for r in results):
                    errors += 1
                elif now >= count_from:
                    latencies.append(now - sent)
                    last = now

        await asyncio.gather(*[loop() for _ in range(concurrency)])
    latencies.sort()
    n = len(latencies)
    print(
        json.dumps(
            {
                "n": n,
                "ops_per_s": n / (last - count_from) if n else 0,
                "p50_ms": latencies[n // 2] * 1e3 if n else None,
                "p99_ms": latencies[n * 99 // 100] * 1e3 if n else None,
                "errors": errors,
            }
        )
    )


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
