"""What can be said of the files for deployment without a container engine, systemd or a runner."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.cuda"])
def test_a_container_file(name: str) -> None:
    text = (DEPLOY / name).read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    known = "ARG|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|RUN|STOPSIGNAL|USER|WORKDIR|#"
    assert [line for line in lines if line and not re.match(rf"(?:{known})", line)] == []
    assert text.count("FROM") == 2  # one builds, one runs
    assert 'ENTRYPOINT ["lightvl", "serve"' in text
    assert re.search(r"^USER 10001$", text, re.M)
    assert ("LIGHTVL_CUDA=1" in text) == name.endswith("cuda")


def test_the_unit() -> None:
    unit = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "lightvl.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith("/lightvl serve $LIGHTVL_FLAGS")
    assert service["RestartPreventExitStatus"] == "2"
    for key in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "RestrictNamespaces"):
        assert service[key] == "yes"
    assert "MemoryDenyWriteExecute" not in service  # torch makes code at run time
    families = service["RestrictAddressFamilies"].split()
    assert families == ["AF_INET", "AF_INET6", "AF_UNIX"]


def test_systemd_knows_the_units_keys(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "lightvl.service").read_text().replace("/opt/lightvl/bin/lightvl", "/bin/true")
    (tmp_path / "lightvl.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "lightvl.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Unknown" not in done.stderr
    assert "Failed to parse" not in done.stderr


def test_the_workflow_builds_three_things() -> None:
    flow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    assert set(flow["jobs"]) == {"sdist", "cpu", "cuda"}
    runs = {
        name: "\n".join(step.get("run", "") for step in job["steps"])
        for name, job in flow["jobs"].items()
    }
    assert "--sdist" in runs["sdist"]
    assert all(
        "--wheel" in runs[name] and "lightvl doctor" in runs[name] for name in ("cpu", "cuda")
    )
    variables = [step.get("env", {}) for step in flow["jobs"]["cuda"]["steps"]]
    assert any(v.get("LIGHTVL_CUDA") == "1" for v in variables)
    assert flow["permissions"] == {"contents": "read"}
