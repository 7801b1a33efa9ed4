"""A full disk: every kind of writer ends with cause and remedy, and leaves nothing half."""

import os
import subprocess

import numpy as np
import pytest

from ember.records.atomic import atomic_dir, atomic_file
from ember.records.errors import CannotWrite


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A small file system of its own with two free pages."""
    folder = tmp_path_factory.mktemp("full")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    try:
        (folder / "filler").write_bytes(b"x" * (2**20 - 8192))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(folder / "table.parquet") as path:
        pq.write_table(pa.table({"a": np.random.rand(100_000)}), path)


def training_state(folder):
    import torch

    with atomic_file(folder / "state.pt") as path:
        torch.save({"a": torch.zeros(100_000)}, path)


def weights(folder):
    import torch
    from safetensors.torch import save_file

    with atomic_dir(folder / "model") as path:
        save_file({"a": torch.zeros(100_000)}, path / "model.safetensors")


def tokenizer(folder):
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE(vocab={f"word{i}": i for i in range(5000)}, merges=[]))
    with atomic_dir(folder / "tokenizer") as path:
        made.save(str(path / "tokenizer.json"))


def gguf(folder):
    from gguf import GGUFWriter

    with atomic_file(folder / "model.gguf") as path:
        writer = GGUFWriter(path, "llama")
        writer.add_tensor("a", np.zeros(100_000, "float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def figure(folder):
    from matplotlib.figure import Figure

    drawn = Figure()
    drawn.add_subplot().imshow(np.random.rand(300, 300))
    with atomic_file(folder / "figure.pdf") as path:
        drawn.savefig(path)


@pytest.mark.parametrize("write", [parquet, training_state, weights, tokenizer, gguf, figure])
def test_a_full_disk_is_named_and_nothing_half_stays(full_disk, write):
    with pytest.raises(CannotWrite) as raised:
        write(full_disk)
    assert "No space left on device" in str(raised.value)
    assert "free space" in str(raised.value)
    assert os.listdir(full_disk) == ["filler"]


def test_another_error_is_not_blamed_on_the_disk(full_disk):
    with pytest.raises(FileNotFoundError), atomic_file(full_disk / "a.txt"):
        (full_disk / "missing").read_text()


def test_an_error_where_there_is_room_keeps_its_type(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.txt"):
        1 / 0  # noqa: B018
