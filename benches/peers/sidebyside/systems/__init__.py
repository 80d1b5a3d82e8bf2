"""One module a system. `bench(args, results)` measures one; it raises Skip when the system is not here."""
