"""How metrics leave the telemetry process. Nothing here is imported by a replica.

prometheus   what a scraper gets: text, OpenMetrics; protobuf is in its own module
protobuf     Prometheus' protobuf exposition, with native histograms
"""
