"""Fixtures of the live tests. They need root and a kernel that runs BPF programs."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.live.harness import HERE, V4, V6, Namespace, Puppet, Tcptrace, check_stream
