"""What claims workflows, keeps their leases and reports their ends."""
