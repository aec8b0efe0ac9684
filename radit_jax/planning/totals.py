"""All stages together: time, chip-hours and their cost, files, and whether a host's disk holds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from radit_jax.planning.deployment import Deployment
from radit_jax.planning.files import Disk, Reads, disk_fault, disk_of
from radit_jax.planning.prices import Price
from radit_jax.planning.resources import ResourceEstimate


@dataclass(frozen=True)
class Totals:
    """Sums over the planned stages: seconds and bytes."""

    seconds: float  # at least
    realistic: float  # about, by the assumptions
    chip_hours: float  # about
    cost: float | None  # about, in the price's currency; None where no price is known
    price: Price | None  # of a chip and an hour
    read: float  # bytes of files that the first host reads, each time that a stage opens them
    written: float  # bytes of files that it writes
    disk: Disk  # what lies on its disk at the end
    fault: str  # what is to be done where the disk is too small; "" where it is not


def total(
    needs: Sequence[ResourceEstimate],
    deployment: Deployment,
    reads: Reads,
    *,
    in_bucket: bool,
    price: Price | None = None,
    disk_bytes: float | None = None,
) -> Totals:
    """The sums over `needs`. A host has `disk_bytes` of disk; None: as much as such hosts are rented with."""
    # 1) Time, and what it costs.
    realistic = sum(need.realistic for need in needs)
    chip_hours = realistic / 3600 * deployment.target.num_chips
    cost = None if price is None else chip_hours * price.price
    # 2) Files.
    disk = disk_of(needs, deployment, reads, in_bucket=in_bucket)
    limit = deployment.target.chip.host_disk if disk_bytes is None else disk_bytes
    return Totals(
        seconds=sum(need.seconds for need in needs),
        realistic=realistic,
        chip_hours=chip_hours,
        cost=cost,
        price=price,
        read=sum(need.read for need in needs),
        written=sum(need.written for need in needs),
        disk=disk,
        fault=disk_fault(disk, limit, in_bucket=in_bucket),
    )
