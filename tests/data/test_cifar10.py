"""CIFAR-10 as people have it: what is wrong with what is there, or with what the network answers."""

import logging
import pickle
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from exact_ntk.data import cifar10
from exact_ntk.data.cifar10 import ARCHIVE, FOLDER, download_cifar10, read_cifar10
from exact_ntk.errors import DataError


@pytest.fixture
def small(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a CIFAR-10 of two images a file, whose checksums are taken for the real ones, and its archive."""
    made = tmp_path / "made"
    (made / FOLDER).mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        batch = {"data": rng.integers(0, 256, (2, 3072)).astype(np.uint8), "labels": [0, 1]}
        (made / FOLDER / name).write_bytes(pickle.dumps(batch))
    (made / FOLDER / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    for path in (made / FOLDER).iterdir():
        sums[path.name] = md5(path.read_bytes()).hexdigest()
    with tarfile.open(made / ARCHIVE, "w:gz") as tar:
        tar.add(made / FOLDER, FOLDER)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((made / ARCHIVE).read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "FILES", tuple(sums.items()))
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", (made / ARCHIVE).stat().st_size)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def test_what_is_whole_is_read(small: Path):
    found = read_cifar10(small)
    assert (found["x_train"].shape, found["x_test"].shape) == ((10, 32, 32, 3), (2, 32, 32, 3))
    assert found["y_train"].tolist() == [0, 1] * 5


SITUATIONS = {
    "a batch cut short": (
        lambda made, root: (made / FOLDER / "data_batch_3").write_bytes(b"half") and move(made / FOLDER, root / FOLDER),
        r"of cifar-10-batches-py, data_batch_3 is damaged \(4 B, the checksum differs\) \(`ntk download`",
    ),
    "a batch missing": (
        lambda made, root: (made / FOLDER / "test_batch").unlink() or move(made / FOLDER, root / FOLDER),
        r"of cifar-10-batches-py, test_batch is missing \(`ntk download` fetches it\)",
    ),
    "not extracted": (
        lambda made, root: move(made / ARCHIVE, root / ARCHIVE),
        "is there but not extracted: run `ntk download`, which needs no network",
    ),
    "an archive cut short": (
        lambda made, root: (root / ARCHIVE).write_bytes(b"x" * 5000),
        r"cifar-10-python\.tar\.gz there is incomplete \(5 kB of .* kB, the checksum differs\): delete it and run",
    ),
    "under another name": (
        lambda made, root: move(made / ARCHIVE, root / "cifar-10-python (1).tar.gz"),
        r"cifar-10-python \(1\)\.tar\.gz is it under another name: rename it to cifar-10-python\.tar\.gz",
    ),
    "Keras's name": (
        lambda made, root: move(made / ARCHIVE, root / "cifar-10-batches-py.tar.gz"),
        r"cifar-10-batches-py\.tar\.gz is it under another name",
    ),
    "a folder further down": (
        lambda made, root: move(made / FOLDER, root / "sub" / FOLDER),
        r"it is in .*root/sub: set data\.root to that",
    ),
    "a folder in itself": (
        lambda made, root: move(made / FOLDER, root / FOLDER / FOLDER),
        rf"it is in .*root/{FOLDER}: set data\.root to that",
    ),
    "a folder beside it": (
        lambda made, root: move(made / FOLDER, root.parent / FOLDER),
        "it is in /.*: set data.root to that",
    ),
    "the batches in the root itself": (
        lambda made, root: [move(path, root / path.name) for path in list((made / FOLDER).iterdir())],
        r"its files lie in data\.root itself",
    ),
    "the binary version": (lambda made, root: (root / "cifar-10-batches-bin").mkdir(), "is the binary version; this"),
    "its archive": (lambda made, root: (root / "cifar-10-binary.tar.gz").touch(), "is the binary version; this reads"),
    "the MATLAB version": (lambda made, root: (root / "cifar-10-matlab.tar.gz").touch(), "is the MATLAB version"),
    "CIFAR-100": (lambda made, root: (root / "cifar-100-python").mkdir(), "is CIFAR-100, another data set"),
    "Kaggle's": (lambda made, root: (root / "trainLabels.csv").touch(), "is Kaggle's version"),
    "an npz": (lambda made, root: (root / "c.npz").touch(), r"c\.npz is an npz archive, which data: {dataset: npz"),
    "an unpacked tar": (
        lambda made, root: (root / "cifar-10-python.tar").touch(),
        r"is not extracted: run tar -xf cifar-10-python\.tar",
    ),
    "something else": (
        lambda made, root: (root / "notes.txt").touch(),
        r"the folder holds notes\.txt, not .* \(`ntk download` fetches it\)",
    ),
    "nothing": (lambda made, root: None, r"the folder holds nothing, not .* \(`ntk download` fetches it\)"),
    "no folder": (lambda made, root: root.rmdir(), "there is no such folder: run `ntk download`"),
    "a file": (lambda made, root: root.rmdir() or root.touch(), r"that is a file: data\.root should be the folder"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_there_instead_is_said(small: Path, root: Path, situation: str):
    arrange, words = SITUATIONS[situation]
    arrange(small, root)
    with pytest.raises(DataError, match=words) as caught:
        read_cifar10(root)
    assert "\n" not in str(caught.value)


def test_a_root_that_is_the_folder_of_the_batches_is_told_from_one_that_holds_it(small: Path):
    for read in (read_cifar10, download_cifar10):
        with pytest.raises(DataError, match=rf"data\.root should be the folder that holds {FOLDER}, here .*made"):
            read(small / FOLDER)


def test_an_archive_that_is_there_needs_no_network(small: Path, root: Path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    move(small / ARCHIVE, root / ARCHIVE)
    download_cifar10(root)
    assert len(read_cifar10(root)["x_train"]) == 10


def test_of_two_processes_that_start_together_one_downloads_and_the_other_waits(
    small: Path, root: Path, monkeypatch, caplog
):
    move(small / ARCHIVE, root / ARCHIVE)
    extracted = []

    class Slow(CIFAR10):
        def download(self):
            extracted.append(self._check_integrity())
            time.sleep(0.3)
            super().download()

    monkeypatch.setattr(cifar10, "CIFAR10", Slow)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as both:
        list(both.map(download_cifar10, [root, root]))
    assert extracted == [False, True]
    assert "another process downloads CIFAR-10 into" in caplog.text
    assert sorted(p.name for p in root.iterdir()) == [FOLDER, ARCHIVE]


def no_network(*args, **kwargs):
    raise OSError("Name or service not known")


def test_without_a_network_it_says_so_and_what_is_there(root: Path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(
        DataError, match=r"service not known\): check the network, or put cifar-10-python\.tar\.gz there"
    ):
        download_cifar10(root)
    (root / ARCHIVE).write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match=r"there is incomplete \(5 kB of 170 MB, the checksum differs\): delete it and"):
        download_cifar10(root)


def test_without_a_network_a_folder_that_is_damaged_or_of_another_version_is_named_too(root: Path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (root / "cifar-10-matlab.tar.gz").touch()
    with pytest.raises(DataError, match=r"cifar-10-matlab\.tar\.gz is the MATLAB version.*; check the network"):
        download_cifar10(root)
    (root / FOLDER).mkdir()
    with pytest.raises(DataError, match=rf"of {FOLDER}, data_batch_1 is missing; check the network"):
        download_cifar10(root)


def test_a_root_that_cannot_be_written_is_no_fault_of_the_network(root: Path):
    (root / "file").touch()
    with pytest.raises(DataError, match=r"make that folder writable, or set data\.root"):
        download_cifar10(root / "file")


HTML = b"<html>Please log in</html>"
ANSWERS = {
    "no HTTP": b"\x00\xff rubbish\n" * 20,
    "nothing": b"",
    "a refusal": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "a long line": b"HTTP/1.1 " + b"x" * 100_000,
    "a web page": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(HTML), HTML),
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 170498071\r\n\r\n" + b"x" * 3000,
}


@pytest.fixture
def proxy(monkeypatch):
    """A server on this host that is the proxy of every address, and answers whatever it is told to."""
    server = socket.create_server(("127.0.0.1", 0))
    answer = [b""]

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer[0])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies it was made with
    monkeypatch.setattr(CIFAR10, "url", "http://example.invalid/cifar-10-python.tar.gz")
    yield answer
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


@pytest.mark.parametrize("what", ANSWERS)
def test_a_proxy_that_answers_rubbish_is_one_line(root: Path, proxy, what: str):
    proxy[0] = ANSWERS[what]
    with pytest.raises(DataError, match=r"cannot download CIFAR-10 into .*check the network") as caught:
        download_cifar10(root)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    if what == "a web page":
        assert "what came is a web page (26 B)" in message
    if what == "cut short":
        assert "what came is incomplete (3 kB of 170 MB" in message
    assert not (root / ARCHIVE).exists()


def test_a_tunnel_that_is_rubbish_is_one_line(root: Path, proxy, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "https://example.invalid/cifar-10-python.tar.gz")
    proxy[0] = ANSWERS["no HTTP"]
    with pytest.raises(DataError, match="check the network"):
        download_cifar10(root)
