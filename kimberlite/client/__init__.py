"""The client: session.py and reading.py speak the protocol, aio.py and blocking.py are the shells around them."""
