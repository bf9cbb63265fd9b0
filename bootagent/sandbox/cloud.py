"""The simulated cloud: one instance with its metadata service, and the AWS API it may call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, cast

from bootagent.sandbox.api import AwsApi, Call
from bootagent.sandbox.metadata import USER_DATA, MetadataServer, SimulatedInstance

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import TagTypeDef
    from mypy_boto3_s3.literals import BucketLocationConstraintType

REGION = "eu-west-1"
#: Variables that would lead a program out of the simulation, and into somebody's real account.
FOREIGN_PREFIXES = ("AWS_", "BOOTAGENT_")


class Cloud:
    """A metadata service and an AWS API that agree about one running instance; a context manager.

    ``api`` is a running :class:`AwsApi` to use, which is reset first (starting one takes a second); without it the
    cloud runs its own. ``beside`` is a running cloud to launch a further instance in, which keeps all it has.
    ``host`` is where the metadata service listens, ``127.0.0.1`` or ``::1``.
    """

    api: AwsApi
    metadata: MetadataServer
    instance: SimulatedInstance

    def __init__(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        region: str = REGION,
        user_data: bytes | None = None,
        api: AwsApi | None = None,
        beside: Cloud | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.region = region
        self._tags = dict(tags or {})
        self._user_data = user_data
        self._shared_api = beside.api if beside else api
        self._is_first = beside is None
        self._host = host
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Cloud:
        with contextlib.ExitStack() as stack:
            self.api = self._shared_api or stack.enter_context(AwsApi())
            if self._shared_api and self._is_first:
                self.api.reset()
            self.instance = self._launch()
            self.metadata = stack.enter_context(
                MetadataServer(self.instance, tags=self._tags, host=self._host, on_tag=self._tag_instance)
            )
            if self._user_data is not None:
                self.metadata.put(USER_DATA, self._user_data)
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    # --- how a program finds it ------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """The standard variables that point any AWS program at this cloud.

        Credentials are not among them: they come from the instance's role, as on EC2.
        """
        return {
            "AWS_ENDPOINT_URL": self.api.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint,
            "AWS_EC2_METADATA_V1_DISABLED": "true",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost,::1",
            "no_proxy": "127.0.0.1,localhost,::1",
        }

    def process_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """A whole environment for a process inside: ``base`` (ours) without its AWS settings, plus this cloud's."""
        inherited = os.environ if base is None else base
        kept = {name: value for name, value in inherited.items() if not name.startswith(FOREIGN_PREFIXES)}
        return {**kept, **self.environment()}

    # --- the instance ----------------------------------------------------------------------------------------

    def set_tag(self, key: str, value: str, *, after: float = 0.0) -> None:
        """Set a tag in EC2 and in the instance metadata, ``after`` seconds from now when given."""
        self.metadata.set_tag(key, value, after=after)

    def remove_tag(self, key: str) -> None:
        """Remove a tag from EC2 and from the instance metadata."""
        self.metadata.remove_tag(key)

    def _launch(self) -> SimulatedInstance:
        template = SimulatedInstance(region=self.region, zone=f"{self.region}a")
        ec2 = self.api.ec2(self.region)
        launched = ec2.run_instances(
            ImageId=template.ami_id,
            InstanceType="t3.small",
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": template.zone},
        )["Instances"][0]
        if self._tags:
            tags: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in self._tags.items()]
            ec2.create_tags(Resources=[launched["InstanceId"]], Tags=tags)
        return SimulatedInstance(
            instance_id=launched["InstanceId"],
            region=self.region,
            zone=template.zone,
            local_ipv4=launched["PrivateIpAddress"],
        )

    def _tag_instance(self, key: str, value: str | None) -> None:
        ec2 = self.api.ec2(self.region)
        if value is None:
            ec2.delete_tags(Resources=[self.instance.instance_id], Tags=[{"Key": key}])
        else:
            ec2.create_tags(Resources=[self.instance.instance_id], Tags=[{"Key": key, "Value": value}])

    # --- buckets ---------------------------------------------------------------------------------------------

    def create_bucket(self, name: str, *, versioned: bool = True) -> None:
        """Create a bucket in the cloud's region."""
        s3 = self.api.s3(self.region)
        if self.region == "us-east-1":
            s3.create_bucket(Bucket=name)
        else:
            where = cast("BucketLocationConstraintType", self.region)
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": where})
        if versioned:
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def buckets(self) -> list[str]:
        """The buckets there are."""
        return [bucket["Name"] for bucket in self.api.s3(self.region).list_buckets()["Buckets"]]

    def put(self, bucket: str, key: str, body: bytes) -> str | None:
        """Store an object; its version id, in a bucket that keeps versions."""
        return self.api.s3(self.region).put_object(Bucket=bucket, Key=key, Body=body).get("VersionId")

    def get(self, bucket: str, key: str) -> bytes:
        """An object's content."""
        return self.api.s3(self.region).get_object(Bucket=bucket, Key=key)["Body"].read()

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""
        self.api.s3(self.region).delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str) -> list[str]:
        """The keys in a bucket, in order."""
        pages = self.api.s3(self.region).get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    # --- what was asked of it --------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """The API calls made by the programs inside, in order."""
        return self.api.calls

    def count(self, service: str, action: str | None = None) -> int:
        """How many calls the programs inside made to a service (``"ec2"``), or of one action (``"DescribeTags"``)."""
        return sum(call.service == service and action in (None, call.action) for call in self.calls)
