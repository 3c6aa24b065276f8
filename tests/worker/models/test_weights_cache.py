"""Model files from a store: downloaded once, whole or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from contract.errors import ModelError
from contract.names import ENV_CACHE_DIR
from contract.settings import ModelSettings
from contract.store.commit import Patience
from contract.store.errors import Unavailable
from contract.store.memory import MemoryStore
from contract.store.open import open_store
from contract.store.protocol import Stored
from tests.worker.models.checkpoints import TINY, saved
from worker.models import weights_cache
from worker.models.registry import load_encoder, load_preparer
from worker.models.weights_cache import cache_directory, cached_copy, local_directory

WEIGHTS = bytes(range(256)) * 40


def raised(error):
    """Raises it, when it is one."""
    if error is not None:
        raise error


class CountingStore(MemoryStore):
    """Remembers the ranges that were read; `on_get` runs before each, and listings fail as often as they are told to."""

    def __init__(self):
        super().__init__("memory://models/tiny")
        self.ranges = []
        self.on_get = lambda: None
        self.failures_of_list = iter(())

    def list(self, prefix="", *, is_deep=True):
        """Fail as often as there are failures, then list."""
        raised(next(self.failures_of_list, None))
        return super().list(prefix, is_deep=is_deep)

    def get(self, key, *, start=0, end=None):
        """Count, then read."""
        self.on_get()
        self.ranges.append((key, start, end))
        return super().get(key, start=start, end=end)


@pytest.fixture
def store(monkeypatch):
    """A model of two files and some that are not wanted, read 1,000 bytes at a time."""
    monkeypatch.setattr(weights_cache, "RANGE_BYTES", 1000)
    store = CountingStore()
    store.put_overwrite("config.json", b"{}")
    store.put_overwrite("model.safetensors", WEIGHTS)
    store.put_overwrite("pytorch_model.bin", b"pickle")
    store.put_overwrite("onnx/model.safetensors", b"of another runtime")
    return store


def test_files_arrive_whole_by_ranged_gets(store, tmp_path):
    """Config and weights are put together from bounded ranges; pickles and subdirectories stay where they are."""
    directory = cached_copy(store, tmp_path)

    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors", ".lock"}
    assert all(end - start <= 1000 for _, start, end in store.ranges)
    assert len(store.ranges) == 1 + 11


def test_a_second_worker_downloads_nothing(store, tmp_path):
    """What is in the cache is not read again."""
    first = cached_copy(store, tmp_path)
    store.ranges.clear()

    assert cached_copy(store, tmp_path) == first
    assert store.ranges == []


def test_workers_that_start_together_download_once(store, tmp_path):
    """Eight at once: one downloads, the others wait for its files."""
    barrier = threading.Barrier(8)

    def load(_):
        barrier.wait(10)
        return cached_copy(store, tmp_path)

    with ThreadPoolExecutor(8) as pool:
        directories = set(pool.map(load, range(8)))

    assert len(directories) == 1
    assert len(store.ranges) == 12


def test_other_weights_under_the_same_name_are_another_model(store, tmp_path):
    """The cache goes by ETag: replaced weights are downloaded, and never mixed with the old config."""
    old = cached_copy(store, tmp_path)
    store.put_overwrite("model.safetensors", b"new")

    new = cached_copy(store, tmp_path)

    assert new != old
    assert (new / "model.safetensors").read_bytes() == b"new"
    assert (old / "model.safetensors").read_bytes() == WEIGHTS


def test_a_store_that_tells_to_slow_down_is_waited_for(store, tmp_path):
    """Refusals that pass, of the listing or of some ranges, cost no load: what was read is kept, the rest read again."""
    waits = []
    failures = iter([None, Unavailable("model.safetensors", "503")] * 3)
    store.on_get = lambda: raised(next(failures, None))
    store.failures_of_list = iter([Unavailable("", "503")])

    directory = cached_copy(store, tmp_path, patience=partial(Patience, sleep=waits.append))

    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert len(waits) == 4
    assert len(store.ranges) == 1 + 11


def test_a_download_that_was_cut_off_is_not_taken_for_the_file(store, tmp_path):
    """After an error, or a kill, under way there is no file under the final name, and the next try makes it whole."""
    failures = iter([None] * 5 + [Unavailable("model.safetensors", "503")])
    store.on_get = lambda: raised(next(failures, None))
    with pytest.raises(Unavailable, match="gave up after 1 attempts"):
        cached_copy(store, tmp_path, patience=partial(Patience, budget_s=-1))
    assert not list(tmp_path.glob("*/model.safetensors"))

    directory = cached_copy(store, tmp_path)

    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert not list(directory.glob(".part-*"))


def test_weights_replaced_during_the_download_are_noticed(store, tmp_path):
    """Ranges of two versions are never joined."""
    reads = iter(range(1000))
    store.on_get = lambda: store.put_overwrite("model.safetensors", WEIGHTS[::-1]) if next(reads) == 5 else None

    with pytest.raises(Unavailable, match="changed while it was downloaded"):
        cached_copy(store, tmp_path)


def test_an_empty_prefix_says_what_to_copy_there(tmp_path):
    """No model file under the prefix: permanent, with the remedy."""
    with pytest.raises(ModelError, match=r"no model file under memory://x/; copy config\.json"):
        cached_copy(MemoryStore("memory://x"), tmp_path)


def test_a_cache_that_cannot_be_written_names_the_variable(store, tmp_path):
    """An unwritable cache is the pod's fault: the message names the variable to set."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ModelError, match=ENV_CACHE_DIR):
        cached_copy(store, tmp_path / "file")


def test_the_cache_is_where_the_environment_says(tmp_path):
    """The variable wins over XDG_CACHE_HOME, which wins over the home directory."""
    assert cache_directory({ENV_CACHE_DIR: "a", "XDG_CACHE_HOME": "b"}).as_posix() == "a"
    assert cache_directory({"XDG_CACHE_HOME": "b"}).as_posix() == "b/inferencerun"
    assert cache_directory({}).parts[-2:] == (".cache", "inferencerun")


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}"])
def test_a_local_directory_is_used_in_place(form, tmp_path):
    """A path or file URI is read where it is."""
    assert local_directory(form.format(tmp_path), {}) == tmp_path


def test_a_local_directory_that_is_not_there_is_an_error(tmp_path):
    """The message names it and what to do."""
    with pytest.raises(ModelError, match="is no directory on this machine; mount it"):
        local_directory(str(tmp_path / "gone"), {})


def test_the_parent_reads_no_weights(tmp_path):
    """The preparer of a model whose weights are nowhere still prepares."""
    preparer = load_preparer(ModelSettings(name="esm2", source=str(tmp_path / "gone")))

    assert preparer.prepare("MKT").num_tokens == 5


def test_a_model_in_a_bucket_is_the_model_in_a_directory(tmp_path, monkeypatch, bucket_uri):
    """A source with a scheme goes through the cache and gives the very rows of the directory."""
    saved(tmp_path / "model", **TINY)
    for path in (tmp_path / "model").iterdir():
        open_store(bucket_uri).put_create(path.name, path.read_bytes())
    monkeypatch.setenv(ENV_CACHE_DIR, str(tmp_path / "cache"))
    payload = load_preparer(ModelSettings(name="esm2", source=bucket_uri)).prepare("MKTAYIAK").payload

    local, remote = (
        load_encoder(ModelSettings(name="esm2", source=source), device="cpu").encode([payload]).values
        for source in (str(tmp_path / "model"), bucket_uri)
    )

    assert local.equal(remote)
    assert list((tmp_path / "cache").glob("*/model.safetensors"))


def test_stored_objects_carry_the_etag_of_the_listing(store):
    """Guard: the comparison of ETags between a listing and a ranged get means something."""
    listed = {item.key: item.etag for item in store.list()}
    part = store.get("model.safetensors", start=0, end=10)

    assert part == Stored(WEIGHTS[:10], listed["model.safetensors"])
