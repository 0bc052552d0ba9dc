"""A Docker engine that goes away in the middle of an episode, and comes back."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests import needs
from tools.python import PythonTool
from tools.sandbox.protocol import DockerOptions, Limits
from tools.tool import ToolContext

ENGINES = "as root on a machine with dockerd; in CI if it may start a second engine"
pytestmark = [pytest.mark.docker, pytest.mark.full]


class Engine:
    """An engine of the test's own, so that no other container is touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix://{folder}/socket"
        self.process = None

    def start(self) -> None:
        command = ["dockerd", "--host", self.address, "--bridge", "none", "--iptables=false"]
        for option in ("data-root", "exec-root", "pidfile"):
            command += [f"--{option}", str(self.folder / option)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _attempt in range(150):
            if self.docker("version").returncode == 0:
                return
            time.sleep(0.2)
        needs.lacking(
            "a second Docker engine", f"see {(self.folder / 'log').read_text()[-500:]}", ENGINES
        )

    def docker(self, *arguments, **options) -> subprocess.CompletedProcess:
        command = ["docker", "--host", self.address, *arguments]
        return subprocess.run(command, capture_output=True, check=False, **options)

    def stop(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait()
        (self.folder / "pidfile").unlink(missing_ok=True)

    def close(self) -> None:
        self.stop(signal.SIGTERM)
        with contextlib.suppress(OSError, ValueError):
            path = self.folder / "exec-root" / "containerd" / "containerd.pid"
            os.kill(int(path.read_text()), signal.SIGKILL)
        # The engine mounts its folder on itself, and leaves it so when it is killed.
        subprocess.run(["umount", self.folder / "data-root"], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def engine():
    """A second engine with the sandbox's image; skips if none can be started."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        needs.lacking("a second Docker engine", "be root and install dockerd", ENGINES)
    engine = Engine(Path(tempfile.mkdtemp(prefix="appo-engine-")))
    try:
        engine.start()
        image = DockerOptions().image
        saved = subprocess.run(["docker", "save", image], capture_output=True, check=False)
        loaded = engine.docker("load", input=saved.stdout)
        if loaded.returncode != 0:
            needs.lacking(f"the image {image}", f"build it: {loaded.stderr}", ENGINES)
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_that_restarts_does_not_end_the_episode(engine, monkeypatch, number):
    monkeypatch.setenv("DOCKER_HOST", engine.address)
    tool = PythonTool("docker", Limits(cpu=5.0, wall=20.0))
    try:
        state = tool.initial_state(ToolContext(seed=1))
        state, _ = tool.run(state, "import random; x = [random.random()]")
        expected = tool.run(state, "x, random.random()")[1].text
        engine.stop(number)
        back = threading.Timer(3.0, engine.start)
        back.start()
        after, result = tool.run(state, "x, random.random()")
        back.join()
        assert result.text == expected
        assert len(after[1]) == 2
        assert tool.replays == 1
    finally:
        tool.close()
    left = engine.docker("ps", "--all", "--quiet")
    assert left.stdout == b"", "a container is left"
