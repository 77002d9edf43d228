"""The server of a report, over real connections, on a disk and on an S3 server."""

import csv
import json

import pytest
import requests

from ovi_ray.storage.paths import to_location
from tests.support.report_server import running_server

VIDEO = bytes(range(256)) * 20
TOKEN = "a-token-of-some-length"


@pytest.fixture(params=["disk", pytest.param("store", marks=pytest.mark.s3)])
def out(request, tmp_path):
    folder = to_location(tmp_path if request.param == "disk" else request.getfixturevalue("s3_bucket")) / "out"
    for name in ("videos", "posters"):
        (folder / name).mkdir()
    (folder / "videos" / "abc.mp4").write_bytes(VIDEO)
    (folder / "report.html").write_bytes(b'<!DOCTYPE html>\n<html lang="en"><body>mine</body></html>')
    (folder / "job.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "report.html").write_text('<html lang="en"></html>')
    (tmp_path / "secret.txt").write_text("secret")
    return to_location(tmp_path)


def events_of(answer):
    """(name, data) of each server-sent event."""
    name = ""
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_job_is_shown_played_sought_followed_and_starred(out):
    with running_server(out) as site:
        page = requests.get(f"{site}/", timeout=30)
        assert (page.status_code, page.url) == (200, f"{site}/report.html")
        assert "data-served" in page.text

        video = requests.get(f"{site}/videos/abc.mp4", timeout=30)
        assert (video.content, video.headers["content-type"]) == (VIDEO, "video/mp4")
        part = requests.get(f"{site}/videos/abc.mp4", headers={"Range": "bytes=100-199"}, timeout=30)
        assert (part.status_code, part.content) == (206, VIDEO[100:200])
        assert part.headers["content-range"] == f"bytes 100-199/{len(VIDEO)}"

        with requests.get(f"{site}/events", stream=True, timeout=30) as stream:
            events = events_of(stream)
            (out / "progress.json").write_bytes(b'{"done": 3}')
            assert next(events) == ("progress", {"done": 3})
            (out / "report.html").write_bytes(b'<html lang="en">newer</html>')
            assert next(events)[0] == "report"
            starred = requests.post(f"{site}/stars", json={"clip_id": "abc", "starred": True}, timeout=30)
            assert starred.json() == ["abc"]
            assert next(events) == ("stars", ["abc"])
        assert requests.get(f"{site}/stars", timeout=30).json() == ["abc"]
        assert (out / "picks.csv").read_text().splitlines() == ["clip_id", "abc"]


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-", 206, 0, len(VIDEO)),
        ("bytes=5000-99999", 206, 5000, len(VIDEO)),
        ("bytes=-120", 206, len(VIDEO) - 120, len(VIDEO)),
        ("bytes=-0", 416, 0, 0),
        (f"bytes={len(VIDEO)}-", 416, 0, 0),
        ("bytes=-", 200, 0, len(VIDEO)),
        ("bytes=9-3", 200, 0, len(VIDEO)),
        ("bytes=0-1,5-6", 200, 0, len(VIDEO)),
        ("frames=1-2", 200, 0, len(VIDEO)),
    ],
)
def test_ranges_are_answered_as_the_standard_says(site_of_disk, asked, status, start, end):
    answer = requests.get(f"{site_of_disk}/videos/abc.mp4", headers={"Range": asked}, timeout=30)
    assert answer.status_code == status
    assert answer.content == VIDEO[start:end]


@pytest.fixture
def site_of_disk(disk):
    (disk / "videos" / "abc.mp4").write_bytes(VIDEO)
    with running_server(disk) as site:
        yield site


def test_a_file_that_did_not_change_is_not_sent_again(site_of_disk):
    tag = requests.head(f"{site_of_disk}/videos/abc.mp4", timeout=30).headers["etag"]
    assert requests.get(f"{site_of_disk}/videos/abc.mp4", headers={"If-None-Match": tag}, timeout=30).status_code == 304
    changed = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert requests.get(f"{site_of_disk}/videos/abc.mp4", headers=changed, timeout=30).content == VIDEO


@pytest.mark.parametrize(
    "path",
    [
        "/videos/missing.mp4",
        "/secret.txt",
        "/videos/..%2fsecret.txt",
        "/videos/%2e%2e/secret.txt",
        "/videos/.hidden",
        "/videos/../secret.txt",
        "/videos/a%5cb",
        "/videos/",
        "/job.json",
    ],
)
def test_nothing_but_the_files_of_a_report_is_served(site_of_disk, path):
    request = requests.Request("GET", site_of_disk).prepare()
    request.url = site_of_disk + path  # as it is, without tidying
    answer = requests.Session().send(request, timeout=30)
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("not json", "application/json", 400),
        ("[]", "application/json", 400),
        ('{"clip_id": "../x", "starred": true}', "application/json", 400),
        ('{"clip_id": "=1+1", "starred": true}', "application/json", 400),
        ('{"clip_id": "abc", "starred": "yes"}', "application/json", 400),
        ('{"clip_id": "abc", "starred": true}', "text/plain", 415),
        ('{"clip_id": "' + "a" * 5000 + '", "starred": true}', "application/json", 400),
    ],
)
def test_a_star_that_is_none_is_refused(site_of_disk, disk, body, kind, status):
    answer = requests.post(f"{site_of_disk}/stars", data=body, headers={"Content-Type": kind}, timeout=30)
    assert answer.status_code == status
    assert not (disk / "picks.csv").exists()


def test_stars_keep_the_other_columns_of_the_picks(site_of_disk, disk):
    (disk / "picks.csv").write_bytes('\ufeffclip_id,note\r\nx,"first, best"\r\ny,\r\n'.encode())
    post = lambda clip, starred: requests.post(  # noqa: E731
        f"{site_of_disk}/stars", json={"clip_id": clip, "starred": starred}, timeout=30
    ).json()
    assert post("z", True) == ["x", "y", "z"]
    assert post("y", False) == ["x", "z"]
    rows = list(csv.DictReader((disk / "picks.csv").read_text("utf-8-sig").splitlines()))
    assert rows == [{"clip_id": "x", "note": "first, best"}, {"clip_id": "z", "note": ""}]


def test_stars_keep_the_form_that_a_spreadsheet_program_gave_the_picks(site_of_disk, disk):
    (disk / "picks.csv").write_bytes("\ufeffclip_id;note\r\nx;erste, beste\r\n;\r\n".encode())
    assert requests.get(f"{site_of_disk}/stars", timeout=30).json() == ["x"]
    star = {"clip_id": "z", "starred": True}
    assert requests.post(f"{site_of_disk}/stars", json=star, timeout=30).json() == ["x", "z"]
    assert (disk / "picks.csv").read_bytes() == "\ufeffclip_id;note\r\nx;erste, beste\r\nz;\r\n".encode()


@pytest.mark.parametrize("content", [b"shot,note\na,b\n", b"PK\x03\x04workbook", b'clip_id\n"x\0'])
def test_a_file_that_has_no_picks_is_not_replaced_by_a_star(site_of_disk, disk, content):
    (disk / "picks.csv").write_bytes(content)
    answer = requests.post(f"{site_of_disk}/stars", json={"clip_id": "z", "starred": True}, timeout=30)
    assert (answer.status_code, "picks.csv" in answer.text) == (409, True)
    assert (disk / "picks.csv").read_bytes() == content


def test_without_a_token_only_names_of_loopback_and_own_pages_are_answered(site_of_disk):
    for name in ("evil.example", "127.0.0.1.evil.example", "[::1].evil.example", "0.0.0.0", "[", ""):
        assert requests.get(site_of_disk, headers={"Host": name}, timeout=30).status_code in (400, 421)
    for name in ("LOCALHOST:1", "127.0.0.9", "[::1]:1"):
        assert requests.get(site_of_disk, headers={"Host": name}, timeout=30).status_code == 200
    star = {"clip_id": "abc", "starred": True}
    elsewhere = {"Origin": "https://evil.example"}
    assert requests.post(f"{site_of_disk}/stars", json=star, headers=elsewhere, timeout=30).status_code == 403
    own = {"Origin": site_of_disk}
    assert requests.post(f"{site_of_disk}/stars", json=star, headers=own, timeout=30).status_code == 200


def test_with_a_token_every_request_needs_it(disk):
    with running_server(disk, token=TOKEN) as site:
        for path in ("/", "/report.html", "/events", "/stars", "/videos/abc.mp4", "/?token=wrong"):
            assert requests.get(site + path, timeout=30).status_code == 401
        assert requests.get(site, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30).status_code == 200
        session = requests.Session()
        page = session.get(f"{site}/report.html?token={TOKEN}", timeout=30)
        assert (page.status_code, page.url) == (200, f"{site}/report.html")  # the token is not left in the address
        (cookie,) = session.cookies
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert session.get(f"{site}/stars", timeout=30).json() == []


def test_a_job_without_a_report_is_looked_at_again(tmp_path):
    with running_server(to_location(tmp_path)) as site:
        assert 'http-equiv="refresh"' in requests.get(site, timeout=30).text
