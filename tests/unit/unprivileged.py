"""Tests that run as root look at some things through an ordinary user's eyes."""

from __future__ import annotations

import os

NOBODY = 65534


def become_nobody() -> None:
    """In a forked child only: there is no way back."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
