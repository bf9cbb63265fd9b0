"""The EBS source: the newest completed snapshot."""

from __future__ import annotations

from bootagent.config.model import EbsSource
from bootagent.ebs import snapshots
from bootagent.sources.revision import Revision


def resolve(source: EbsSource, region: str | None) -> Revision:
    """Ask EC2 for it (one DescribeSnapshots, or more for many). Raises AwsError, and BootagentError for none."""
    found = snapshots.newest(region, dict(source.snapshot), source.owner)
    return Revision(id=found.id, label=found.id, origin=str(source), content=found)
