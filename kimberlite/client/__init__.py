"""The client: session.py is the protocol without I/O, aio.py and blocking.py are its shells."""
