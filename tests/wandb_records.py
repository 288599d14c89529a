"""Reads what an offline run of W&B has recorded."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32_768, 7


def records(path: Path, seconds: float = 60) -> list[Record]:
    """The records of a finished run. W&B's service writes the last of them after ``wandb.finish()`` has returned.

    Raises:
        TimeoutError: The record of the run's exit is not there after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = list(_parse(path.read_bytes()))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{path} has no record of the run's exit after {seconds:g} s.")


def _parse(data: bytes) -> Iterator[Record]:
    """The whole records of a log: after a 7-byte header, LevelDB's framing (crc, length, kind; blocks of 32 KiB)."""
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4) and at <= len(data):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def summary(log: list[Record]) -> dict[str, Any]:
    """The summary of a run, by key."""
    return {key(item): json.loads(item.value_json) for r in log for item in r.summary.update}
