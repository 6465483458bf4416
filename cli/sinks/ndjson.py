"""One JSON object per line: for pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tcptrace.cli.sinks.base import LineWriter


class NdjsonSink:
    """UTF-8, control characters escaped, 64-bit identities as strings, no NUL."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def write(self, events: Sequence[dict[str, Any]]) -> None:
        self._writer.write(
            [orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events]
        )

    def close(self) -> None:
        self._writer.close()
