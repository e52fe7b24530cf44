"""What people do without labkit: boto3's transfer manager over a folder. Arguments: send|bring FOLDER BUCKET PREFIX."""

import os
import sys
from pathlib import Path

import boto3

way, folder, bucket, prefix = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
client = boto3.client("s3", endpoint_url=os.environ["AWS_S3_ENDPOINT"])
if way == "send":
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")
else:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for item in page["Contents"]:
            path = folder / item["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, item["Key"], str(path))
