"""The small Hub of the tests, seen by the clients that know the real one."""

import hashlib
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hub_server import Account, Hub

WEIGHTS = bytes(range(256)) * 1000
SMALL = {"config.json": b'{"model_type": "gpt2", "n_layer": 3}', "README.md": b"---\nlicense: mit\n---\nA model\n"}
FILES = {**SMALL, "deep/model.safetensors": WEIGHTS, "empty.bin": b""}

PRELUDE = """
import json
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def outcome(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except Exception as error:
        return type(error).__name__
    return "well"
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def run(hub: Hub, home: Path, code: str, token: bool | str = False, **more: str) -> Any:
    """What `code` leaves in `result`, in a process of its own: the clients read HF_ENDPOINT when they are imported."""
    program = f"{PRELUDE}\n{dedent(code)}\nprint(json.dumps(result))"
    environment = hub.environment(home, token=token, **more)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def written(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def read(folder: str | Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith((".cache", ".gitattributes"))}


def asked(hub: Hub, method: str, part: str) -> list[int | None]:
    """How the requests were answered that have `part` in their path."""
    return [request.status for request in hub.requests if request.method == method and part in request.path]


def ask(method: str, url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as reply:
            return reply.status, reply.read(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def parquet(*texts: str) -> bytes:
    pyarrow.parquet.write_table(pa.table({"text": list(texts)}), buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_pushed_folder_is_one_commit_and_comes_back_to_who_may_read_it(hub: Hub, tmp_path: Path) -> None:
    written(tmp_path / "model", FILES)
    sha, again, same = run(
        hub,
        tmp_path,
        """
        api = HfApi()
        assert api.whoami()["name"] == "user"
        assert api.create_repo("user/name", private=True) == api.create_repo("user/name", private=True, exist_ok=True)
        first, second = (api.upload_folder(repo_id="user/name", folder_path="model").oid for _ in range(2))
        assert api.repo_info("user/name").private
        Path("model/config.json").unlink()
        third = api.upload_folder(repo_id="user/name", folder_path="model", delete_patterns="*.json").oid
        late = dict(repo_id="user/name", path_or_fileobj=b"late", path_in_repo="late", parent_commit=first)
        assert outcome(api.upload_file, **late) == "HfHubHTTPError"  # 412
        snapshot_download("user/name", revision=first, local_dir="old")
        snapshot_download("user/name", local_dir="new")
        result = first, third, first == second
        """,
        token=True,
    )
    repo = hub.repos["user/name"]
    assert repo.private and same and list(repo.commits)[1:] == [sha, again] and repo.at().sha == again
    assert {name: content for name, content in repo.files(sha).items() if name != ".gitattributes"} == FILES
    assert [name for name, file in repo.at(sha).files.items() if file.lfs] == ["deep/model.safetensors"]
    assert read(tmp_path / "old") == FILES
    assert read(tmp_path / "new") == {name: FILES[name] for name in FILES if name != "config.json"}
    assert asked(hub, "PUT", "/lfs/") == [200]  # the second time the storage has it
    storage = [request for request in hub.requests if request.path.startswith(("/lfs/", "/cdn/"))]
    assert len(storage) > 1 and not any("authorization" in request.headers for request in storage)

    hub.tokens |= {"hf_read": Account("user", "read"), "hf_other": Account("other", "write")}
    hub.add("models", "user/public", SMALL)
    code = """
        api = HfApi()
        result = [outcome(snapshot_download, "user/name"), outcome(snapshot_download, "user/public")]
        result.append(outcome(api.upload_file, repo_id="user/public", path_or_fileobj=b"a", path_in_repo="a"))
        result.append(outcome(api.create_repo, "user/more"))
        """
    hidden, failed = "RepositoryNotFoundError", "HfHubHTTPError"
    outcomes = {
        "": [hidden, "well", hidden, failed],
        "hf_wrong": [failed] * 4,
        "hf_other": [hidden, "well", failed, failed],
        "hf_read": ["well", "well", failed, failed],
    }
    for token, expected in outcomes.items():
        assert run(hub, empty(tmp_path / f"as {token}"), code, token) == expected, token
    assert len(hub.repos["user/public"].commits) == 1 and "user/more" not in hub.repos


def test_revisions_stay_and_what_is_missing_has_its_own_error(hub: Hub, tmp_path: Path) -> None:
    repo = hub.add("models", "gpt2", {"config.json": b"old"})
    old = repo.at().sha
    repo.tags["v1"] = old
    repo.commit({"config.json": b"new", **{f"a/{i}.txt": b"%d" % i for i in range(5)}})
    hub.add("models", "other/gated", SMALL, gated=True)
    hub.page = 2
    result = run(
        hub,
        tmp_path,
        """
        api = HfApi()
        contents = [Path(hf_hub_download("gpt2", "config.json", revision=r)).read_text() for r in (None, "v1", OLD)]
        result = {
            "contents": contents,
            "revision": outcome(hf_hub_download, "gpt2", "config.json", revision="v2"),
            "commit": outcome(snapshot_download, "gpt2", revision="0" * 40),
            "file": outcome(hf_hub_download, "gpt2", "none.json"),
            "folder": outcome(lambda: list(api.list_repo_tree("gpt2", "none"))),
            "repo": outcome(hf_hub_download, "nobody/nothing", "config.json"),
            "gated": outcome(hf_hub_download, "other/gated", "config.json"),
            "tree": [entry.path for entry in api.list_repo_tree("gpt2", recursive=True)],
            "top": [entry.path for entry in api.list_repo_tree("gpt2", expand=True)],
            "a": [entry.last_commit.title for entry in api.list_repo_tree("gpt2", "a", expand=True)],
            "paths": [info.path for info in api.get_paths_info("gpt2", ["a", "a/1.txt", "b"])],
            "refs": [[ref.name, ref.target_commit] for ref in api.list_repo_refs("gpt2").tags],
            "files": [[file.rfilename, file.size] for file in api.model_info("gpt2", files_metadata=True).siblings][:2],
        }
        """.replace("OLD", repr(old)),
    )
    assert result == {
        "contents": ["new", "old", "old"],
        "revision": "RevisionNotFoundError",
        "commit": "RevisionNotFoundError",
        "file": "RemoteEntryNotFoundError",
        "folder": "RemoteEntryNotFoundError",
        "repo": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "tree": ["a", *(f"a/{i}.txt" for i in range(5)), "config.json"],
        "top": ["a", "config.json"],
        "a": ["Change"] * 5,
        "paths": ["a", "a/1.txt"],
        "refs": [["v1", old]],
        "files": [["a/0.txt", 1], ["a/1.txt", 1]],
    }


def test_files_come_whole_and_in_ranges(hub: Hub) -> None:
    sha = hub.add("datasets", "user/data", {"a.txt": b"0123456789", "a.parquet": WEIGHTS}).at().sha
    url = f"{hub.url}/datasets/user/data/resolve/main/a"
    status, body, headers = ask("GET", f"{url}.txt")
    assert (status, body, headers["X-Repo-Commit"]) == (200, b"0123456789", sha)
    assert headers["ETag"] == f'"{hashlib.sha1(b"blob 10" + bytes(1) + body).hexdigest()}"'
    ranges = {"bytes=3-": b"3456789", "bytes=3-4": b"34", "bytes=-2": b"89", "bytes=8-99": b"89"}
    assert {asked: ask("GET", f"{url}.txt", Range=asked)[:2] for asked in ranges} == {
        k: (206, v) for k, v in ranges.items()
    }
    assert ask("GET", f"{url}.txt", Range="bytes=3-4")[2]["Content-Range"] == "bytes 3-4/10"
    assert ask("GET", f"{url}.txt", Range="bytes=10-")[0] == 416
    status, body, headers = ask("GET", f"{url}.parquet", Range="bytes=256-511")  # follows to the storage
    assert (status, body, headers["ETag"]) == (206, WEIGHTS[:256], f'"{hashlib.sha256(WEIGHTS).hexdigest()}"')
    storage = f"{hub.url}{hub.requests[-1].path}"
    assert hub.requests[-1].path.startswith("/cdn/") and ask("GET", storage)[0] == 403  # without its signature


def test_faults_of_downloads(hub: Hub, tmp_path: Path) -> None:
    names = ["cut", "large", "corrupt", "stall", "head503", "get429", "get500", "get401", "get403", "get404"]
    files = {f"{name}.safetensors": WEIGHTS for name in names} | {"large.safetensors": 45 * WEIGHTS}
    hub.add("models", "user/name", files)
    faults = [
        hub.fault(r"^GET .*/cut\.", "cut"),
        hub.fault(r"^GET /cdn/.*/large\.", "cut", after=11_000_000),
        hub.fault(r"^GET .*/corrupt\.", "corrupt"),
        hub.fault(r"^GET .*/stall\.", "stall", seconds=60),
        hub.fault("^HEAD .*/head503", 503),
        hub.fault("^GET .*/get429", 429, retry_after=0),
        hub.fault("^GET .*/get500", 500),
        hub.fault("^GET .*/get401", 401),
        hub.fault("^HEAD .*/get403", 403),
        hub.fault("^HEAD .*/get404", 404, code="EntryNotFound"),
    ]
    result = run(
        hub,
        tmp_path,
        f"""
        from concurrent.futures import ThreadPoolExecutor
        fetch = lambda name: outcome(hf_hub_download, "user/name", name + ".safetensors", local_dir="files")
        with ThreadPoolExecutor() as pool:
            result = dict(zip({names}, pool.map(fetch, {names})))
        """,
        HF_HUB_DOWNLOAD_TIMEOUT="1",
    )
    assert [fault.hits for fault in faults] == [1] * len(faults)
    assert result == dict.fromkeys(names, "well") | {
        "get500": "HfHubHTTPError",
        "get401": "HfHubHTTPError",
        "get403": "LocalEntryNotFoundError",
        "get404": "RemoteEntryNotFoundError",
    }
    # The client compares sizes and no checksums: whoever cares must look for himself.
    files["corrupt.safetensors"] = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    assert read(tmp_path / "files") == {name: files[name] for name in files if result[Path(name).stem] == "well"}
    assert asked(hub, "HEAD", "/head503") == [503, 302] and asked(hub, "GET", "/get429") == [429, 200]
    assert asked(hub, "GET", "/stall.") == [None, 200]
    assert asked(hub, "GET", "/cut.") == [200, 200]  # of less than 10 MB the client keeps nothing
    assert asked(hub, "GET", "/large.") == [200, 206]
    ranges = [request.headers.get("range") for request in hub.requests if "/large." in request.path]
    assert ranges == [None, None, f"bytes={10 * 2**20}-"]


def test_what_is_uploaded_is_checked(hub: Hub) -> None:
    hub.add("models", "user/name", {})
    right, oid = {"Authorization": f"Bearer {hub.token}"}, hashlib.sha256(WEIGHTS).hexdigest()
    batch = json.dumps({"objects": [{"oid": oid, "size": len(WEIGHTS)}]}).encode()
    commit = json.dumps({"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": oid}}).encode()
    links = json.loads(ask("POST", f"{hub.url}/user/name.git/info/lfs/objects/batch", batch, **right)[1])["objects"]
    upload, verify = (links[0]["actions"][name]["href"] for name in ("upload", "verify"))
    verified = verify, json.dumps({"oid": oid, "size": len(WEIGHTS)}).encode()
    committed = f"{hub.url}/api/models/user/name/commit/main", commit
    assert ask("PUT", upload, WEIGHTS[:-1])[0] == 400
    assert ask("POST", *verified, **right)[0] == 404 and ask("POST", *committed, **right)[0] == 400
    assert ask("PUT", upload, WEIGHTS)[0] == 200
    assert ask("POST", *verified, **right)[0] == 200 and ask("POST", *committed)[0] == 401
    assert ask("POST", *committed, **right)[0] == 200 and hub.repos["user/name"].files() == {"a.bin": WEIGHTS}


def test_a_fault_without_end_meets_only_what_it_matches(hub: Hub) -> None:
    hub.add("models", "user/name", {"a.txt": b"a", "b.txt": b"b"})
    fault = hub.fault("GET .*/a", 503, None, retry_after=7)
    for _ in range(3):
        status, _, headers = ask("GET", f"{hub.url}/user/name/resolve/main/a.txt")
        assert (status, headers["Retry-After"]) == (503, "7")
    assert ask("GET", f"{hub.url}/user/name/resolve/main/b.txt")[:2] == (200, b"b") and fault.hits == 3
    with pytest.raises(ValueError, match="no such fault"):
        hub.fault(".", "slow")  # type: ignore[arg-type]


def test_faults_of_uploads(hub: Hub, tmp_path: Path) -> None:
    written(tmp_path / "model", FILES)
    hub.add("models", "user/name", {"a.txt": b"a"})
    hub.fault("^PUT /lfs/", 500)
    hub.fault("^POST .*/preupload/", 503)
    hub.fault("^POST .*/commit/", 429, retry_after=0)
    push = """result = outcome(HfApi().upload_folder, repo_id="user/name", folder_path="model")"""
    assert run(hub, tmp_path, push, True) == "HfHubHTTPError"  # a commit is not repeated, the rest is
    assert asked(hub, "PUT", "/lfs/") == [500, 200] and asked(hub, "POST", "/preupload/") == [503, 200]
    assert asked(hub, "POST", "/commit/") == [429] and len(hub.repos["user/name"].commits) == 1
    hub.fault("^POST .*/commit/", "cut")
    assert run(hub, tmp_path, push, True) == "RemoteProtocolError"  # the answer is lost, the commit is not
    assert hub.repos["user/name"].files() == {"a.txt": b"a", **FILES}


def test_transformers_reads_a_private_model(hub: Hub, tmp_path: Path) -> None:
    hub.add("models", "user/name", SMALL, private=True)
    code = """
        from transformers import AutoConfig
        load = lambda: AutoConfig.from_pretrained("user/name")
        token, layers = outcome(load), None
        if token == "well":
            layers = load().n_layer
        result = token, layers
        """
    assert run(hub, empty(tmp_path / "own"), code, True) == ["well", 3]
    assert asked(hub, "GET", "/user/name/resolve/") == [200]
    assert run(hub, empty(tmp_path / "other"), code) == ["OSError", None]


def test_datasets_reads_parquet_plain_and_by_configuration(hub: Hub, tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    for_all = {f"data/{split}-00000-of-00001.parquet": parquet(split, "plain") for split in splits}
    hub.add("datasets", "user/plain", for_all, private=True)
    folders = ("wikitext-2-raw-v1", "wikitext-103-raw-v1")
    card = "".join(
        f"- config_name: {folder}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in splits)
        for folder in folders
    )
    files = {f"{f}/{split}-00000-of-00001.parquet": parquet(f, split) for f in folders for split in splits}
    hub.add("datasets", "other/wikitext", {"README.md": f"---\nconfigs:\n{card}---\n".encode(), **files})
    result = run(
        hub,
        tmp_path,
        """
        from datasets import get_dataset_config_names, load_dataset
        whole = load_dataset("user/plain")
        wiki = "other/wikitext", "wikitext-2-raw-v1"
        result = {
            "plain": {split: whole[split]["text"][:] for split in whole},
            "wiki": load_dataset(*wiki, split="test")["text"][:],
            "stream": [row["text"] for row in load_dataset(*wiki, split="validation", streaming=True)],
            "names": get_dataset_config_names("other/wikitext"),
            "none": outcome(load_dataset, "user/none"),
        }
        """,
        token=True,
    )
    assert result == {
        "plain": {split: [split, "plain"] for split in splits},
        "wiki": ["wikitext-2-raw-v1", "test"],
        "stream": ["wikitext-2-raw-v1", "validation"],
        "names": list(folders),
        "none": "DatasetNotFoundError",
    }
    assert not any("wikitext-103" in request.path for request in hub.requests)


def test_the_environment_is_the_hubs_alone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "TRANSFORMERS_OFFLINE",
        "https_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.setenv(name, "1")
    environment = hub.environment(tmp_path, MORE="more")
    left = {name for name in environment if name.startswith(("HF_", "HUGGING", "TRANSF")) or "proxy" in name.lower()}
    own = {"HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"}
    assert left == own | {"NO_PROXY"} and environment["MORE"] == "more"
    assert hub.environment(tmp_path, token=True)["HF_TOKEN"] == "hf_test"
