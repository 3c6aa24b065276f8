"""Which GPU each worker of a local run gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.run import _devices, _environment


def test_each_worker_gets_a_device_of_its_own() -> None:
    """Workers take the devices in turn, so that no two share one before all are taken."""
    devices = [_environment(slot, 3, ["4", "6"])["CUDA_VISIBLE_DEVICES"] for slot in range(3)]

    assert devices == ["4", "6", "4"]


def test_without_devices_nothing_is_said_of_them() -> None:
    """A machine without GPUs leaves the model on the CPU."""
    assert "CUDA_VISIBLE_DEVICES" not in _environment(0, 1, [])


@pytest.mark.parametrize(("visible", "expected"), [("2,5", ["2", "5"]), ("", []), ("GPU-3d2c1a54", ["GPU-3d2c1a54"])])
def test_a_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    """What CUDA_VISIBLE_DEVICES allows is divided, and nothing else is touched."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert _devices() == expected


def test_the_driver_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each GPU that the driver's tool lists is one device."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA L4 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert _devices() == ["0", "1"]
