"""What turns bundles into reports: quality, parity, regression against the one in service, latency."""
