"""Faults to test with: disks that fail, die or lose what was never made durable, and networks that do worse."""
