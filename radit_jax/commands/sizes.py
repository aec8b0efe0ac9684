"""Bytes in words."""


def size_text(num_bytes: float | int) -> str:
    """A size with three digits or more, in the unit that suits it.

    >>> size_text(999), size_text(2_500_000), size_text(12_345_678_901)
    ('999 B', '2.5 MB', '12.3 GB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    # Decimal units, as disks and buckets are sold in.
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} TB"
