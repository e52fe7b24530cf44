"""The same by labkit: verified by SHA-256, whole or not at all. Arguments: send|bring FOLDER BUCKET PREFIX."""

import sys
from pathlib import Path

from labkit.transfer import bring, bundle, parse, send

way, folder, place = sys.argv[1], Path(sys.argv[2]), parse(f"s3://{sys.argv[3]}/{sys.argv[4]}")
if way == "send":
    send(bundle(folder), place)
else:
    bring(place, folder)
