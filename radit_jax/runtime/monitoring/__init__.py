"""Progress lines, metrics and throughput."""
