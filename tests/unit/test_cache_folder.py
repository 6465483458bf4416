"""The folder of compiled programs: only our own files go, and only from a place of our own."""

from pathlib import Path

import pytest

from tcptrace.probes.engine import cache


def test_only_our_own_files_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("TCPTRACE_CACHE", str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("somebody's")
    for number in range(cache._KEPT + 5):
        (tmp_path / f"{number:064x}").write_bytes(b"")
    cache._drop_oldest()
    left = {path.name for path in tmp_path.iterdir()}
    assert "pyproject.toml" in left
    assert len(left) == cache._KEPT + 1


@pytest.mark.parametrize("value", ["", ".", "relative/folder"])
def test_what_is_no_absolute_path_is_not_taken_for_the_folder(monkeypatch, value):
    monkeypatch.setenv("TCPTRACE_CACHE", value)
    assert cache.folder() == Path("/var/cache/tcptrace")
