import signal
import socket
import subprocess

import pytest
import requests
from typer.testing import CliRunner

from ovi_ray.cli import app
from tests.support.cli import OVI_RAY
from tests.support.waiting import PATIENCE_S


def call(*arguments):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "300"})
    return result.exit_code, result.stderr


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    code, message = call(tmp_path / "missing")
    assert code == 2
    assert "OUT is" in message


def test_a_short_token_is_refused(tmp_path):
    code, message = call(tmp_path, "--token", "short")
    assert code == 2
    assert "5 characters" in message
    assert "short" not in message.replace("characters", "")


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, message = call(tmp_path, "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port} (Address already in use);" in message


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_the_address_that_is_printed_opens_the_report_and_other_hosts_need_the_token(tmp_path, host):
    (tmp_path / "report.html").write_text("the report")
    command = [*OVI_RAY, "serve", str(tmp_path), "--host", host, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(word for word in server.stderr.readline().split() if word.startswith("http"))
            assert ("token=" in address) == (host == "0.0.0.0")
            assert requests.get(address, timeout=PATIENCE_S).text == "the report"
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 143
        finally:
            server.kill()
