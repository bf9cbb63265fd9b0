"""python3 - URL FILE [SHA256]: fetches a file, an s3:// one with the instance's role.

It goes along in user-data, so it stands alone. The signature is Signature Version 4 (IAM User Guide, "Create a signed
AWS API request").
"""

import hashlib
import hmac
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TRIES = 20
PAUSE = 3
EMPTY = hashlib.sha256().hexdigest()


def metadata(path: str, method: str = "GET", **headers: str) -> str:
    """What instance metadata says; never through a proxy."""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{base.rstrip('/')}/latest/{path}", method=method, headers=named)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
        return str(response.read().decode())


def signed(url: str, region: str) -> urllib.request.Request:
    """A request for s3://BUCKET/KEY, signed with the credentials of the instance's role."""
    token = metadata("api/token", "PUT", x_aws_ec2_metadata_token_ttl_seconds="300")

    def ask(path: str) -> str:
        return metadata(f"meta-data/{path}", x_aws_ec2_metadata_token=token)

    region = region or ask("placement/region")
    role = ask("iam/security-credentials/").split("\n")[0]
    given = json.loads(ask(f"iam/security-credentials/{role}"))
    bucket, _, key = url[len("s3://") :].partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint or "." in bucket:  # no certificate is for such a name
        base = endpoint or f"https://s3.{region}.{ask('services/domain')}"
        path = f"/{bucket}/{key}"
    else:
        base = f"https://{bucket}.s3.{region}.{ask('services/domain')}"
        path = f"/{key}"
    path = urllib.parse.quote(path, safe="/-_.~")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "host": urllib.parse.urlsplit(base).netloc,
        "x-amz-content-sha256": EMPTY,
        "x-amz-date": stamp,
        "x-amz-security-token": given["Token"],
    }
    names = ";".join(headers)
    lines = [f"{name}:{value}" for name, value in headers.items()]
    canonical = "\n".join(["GET", path, "", *lines, "", names, EMPTY])
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    secret = f"AWS4{given['SecretAccessKey']}".encode()
    for word in (*scope.split("/"), to_sign):
        secret = hmac.new(secret, word.encode(), "sha256").digest()
    credential = f"Credential={given['AccessKeyId']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={secret.hex()}"
    return urllib.request.Request(base.rstrip("/") + path, headers=headers)


def fetch(url: str, file: str, region: str = "") -> str:
    """Write what the URL names to a file; its SHA-256."""
    request = signed(url, region) if url.startswith("s3://") else urllib.request.Request(url)
    digest = hashlib.sha256()
    with urllib.request.urlopen(request, timeout=60) as response, open(file, "wb") as out:  # noqa: PTH123
        length = int(response.headers.get("content-length") or -1)
        while part := response.read(1 << 20):
            digest.update(part)
            out.write(part)
        if length not in (-1, out.tell()):
            raise ValueError(f"{out.tell()} of {length} bytes came")
    return digest.hexdigest()


def main(url: str, file: str, wanted: str = "") -> None:
    """Fetch with patience: at boot, neither the network nor the role need be there yet."""
    region = ""
    for left in reversed(range(TRIES)):
        try:
            found = fetch(url, file, region)
            if wanted in ("", found):
                return
            raise ValueError(f"it is not what was asked for: its SHA-256 is {found}")
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                region = error.headers.get("x-amz-bucket-region") or ""
            if not left:
                if os.path.exists(file):  # noqa: PTH110
                    os.unlink(file)  # noqa: PTH108
                sys.exit(f"cannot fetch {url}: {error}")
            time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
