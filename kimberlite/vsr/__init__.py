"""The pure protocol core. Start at replica.py for the map, at work.py for its contract."""
