"""Corpus → tokenizer → model directory: what is written loads in Transformers and is repeatable."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from ember.measure.device import NoDevice
from ember.model.checkpoint import load_decoder
from ember.model.folder import weights_kind
from ember.model.rope import BadArchitecture
from ember.optim import lm
from ember.optim.loop import BadTraining, Interrupted
from ember.records.tables import read_rows, read_table, write_table
from ember.studies.shared.corpora.make import build_corpus, join_corpora
from ember.studies.shared.corpora.tables import CORPUS
from ember.studies.shared.models.tables import MODEL_CARD, TRAINING_LOG
from ember.studies.shared.models.train import token_stream, train_model
from ember.studies.shared.tokenizer.make import train_tokenizer, training_texts
from ember.text.corpora import BadCorpus
from ember.text.tokenizer import load_tokenizer

RUNTIME = {"device": "cpu", "dtype": "float32", "seed": 3}
SETTINGS = {
    "source": "train",
    "preset": None,
    "architecture": {
        "model_type": "qwen3",
        "num_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 256,
        "rope_theta": 100000.0,
        "tie_embeddings": True,
    },
    "training": {
        "corpora": ["short"],
        "steps": 12,
        "batch_size": 4,
        "sequence_length": 32,
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "validation_tokens": 512,
        "validate_every": 6,
        "checkpoint_seconds": 30.0,
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rows = build_corpus({"source": "pydoc", "max_bytes": 120_000}, seed=1)
    path = tmp_path_factory.mktemp("corpus") / "short.parquet"
    write_table(path, rows, CORPUS)
    return read_rows(path, CORPUS)


@pytest.fixture(scope="module")
def tokenizer_dir(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    facts = train_tokenizer([corpus], {"vocab_size": 400, "train_bytes": 50_000}, tokenizer=out)
    assert facts["vocab_size"] == 400
    assert 0 < facts["train_bytes"] <= 50_000
    return out


@pytest.fixture(scope="module")
def trained(corpus, tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    card, rows = train_model(
        [corpus],
        tokenizer_dir,
        SETTINGS,
        runtime=RUNTIME,
        model=folder / "model",
    )
    return folder / "model", card, rows


def weights_of(folder) -> dict[str, torch.Tensor]:
    return dict(load_decoder(folder).named_parameters())


def test_model_directory_is_complete(trained):
    folder, _, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "ember.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    }
    assert weights_kind(folder) == "trained"
    about = json.loads((folder / "ember.json").read_text())
    assert about["tokens"] == 12 * 4 * 32
    readme = (folder / "README.md").read_text()
    assert "ngram_bits_per_byte" in readme
    assert str(folder.parent) not in readme


def test_transformers_loads_it_with_equal_logits(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = trained
    text = "The assert statement is a convenient way to insert debugging assertions."
    ours = load_tokenizer(folder).encode(text)
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ours
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = load_decoder(folder)
    tokens = torch.tensor([ours])
    with torch.inference_mode():
        difference = theirs(tokens).logits - decoder.logits(decoder(tokens))
    assert difference.abs().max() < 1e-4
    assert theirs.config.eos_token_id == load_tokenizer(folder).eos_id


def test_tables_fit_their_schemas(trained, tmp_path):
    _, card, rows = trained
    write_table(tmp_path / "card.parquet", card, MODEL_CARD)
    write_table(tmp_path / "log.parquet", rows, TRAINING_LOG)
    table = read_table(tmp_path / "log.parquet", TRAINING_LOG)
    assert table["step"].max() == 12
    assert table["val_bits_per_byte"].notna().sum() == 2
    assert table["train_loss"].iloc[-1] < table["train_loss"].iloc[0]


def test_card_is_consistent(trained):
    folder, card, _ = trained
    values = {(row["metric"], row["split"]): row for row in card}
    counted = sum(p.numel() for p in load_decoder(folder).parameters())
    assert values["parameters", "all"]["value"] == counted
    for split in ("validation", "test"):
        model = values["bits_per_byte", split]["value"]
        assert 1 < model < 8
        for name in ("unigram", "ngram"):
            baseline = values[f"{name}_bits_per_byte", split]["value"]
            gain = values[f"gain_over_{name}", split]
            assert gain["value"] == pytest.approx(baseline - model)
            assert gain["low"] <= gain["value"] <= gain["high"]
            assert (gain["low"] > 0) == gain["detail"].startswith("the model is better")
            assert (gain["high"] < 0) == gain["detail"].startswith(f"the {name} is better")
    # Twelve steps of a tiny model: the card must say that counting is better.
    assert values["gain_over_ngram", "test"]["detail"].startswith("the ngram is better")


def test_same_seed_same_model_other_seed_another(trained, corpus, tokenizer_dir, tmp_path):
    folder, _, _ = trained

    def again(seed: int):
        out = tmp_path / str(seed)
        runtime = RUNTIME | {"seed": seed}
        train_model([corpus], tokenizer_dir, SETTINGS, runtime=runtime, model=out)
        return weights_of(out)

    first = weights_of(folder)
    assert all(torch.equal(first[name], tensor) for name, tensor in again(3).items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in again(4).items())


def test_interrupted_training_leaves_no_model_and_resumes(
    trained, corpus, tokenizer_dir, tmp_path, monkeypatch
):
    folder, _, _ = trained
    out, state = tmp_path / "model", tmp_path / "state.pt"
    arguments = {"runtime": RUNTIME, "model": out, "state": state}
    evaluate = lm.evaluate

    def stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("ember.studies.shared.models.train.evaluate", stop)
        with pytest.raises(Interrupted, match="after step 6 of 12"):
            train_model([corpus], tokenizer_dir, SETTINGS, **arguments)
    assert state.is_file()
    assert not out.exists()
    _, rows = train_model([corpus], tokenizer_dir, SETTINGS, **arguments)
    assert rows[-1]["step"] == 12
    first, resumed = weights_of(folder), weights_of(out)
    assert all(torch.equal(first[name], tensor) for name, tensor in resumed.items())


def test_a_job_killed_after_training_and_before_its_tables_trains_no_step_again(
    trained, corpus, tokenizer_dir, tmp_path, monkeypatch
):
    folder, _, _ = trained
    arguments = {"runtime": RUNTIME, "model": tmp_path / "model", "state": tmp_path / "state.pt"}
    card, _ = train_model([corpus], tokenizer_dir, SETTINGS, **arguments)
    assert arguments["state"].is_file()
    monkeypatch.setattr(
        lm.LanguageModelling, "step", lambda *_: pytest.fail("a step was trained again")
    )
    again, rows = train_model([corpus], tokenizer_dir, SETTINGS, **arguments)
    assert again == card
    assert rows[-1]["step"] == 12
    first, second = weights_of(folder), weights_of(arguments["model"])
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_stream_is_the_split_between_end_tokens(corpus, tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    documents = join_corpora([corpus])
    stream = token_stream(documents, tokenizer, "test")
    texts = [doc.text for doc in documents if doc.split == "test"]
    assert stream.dtype == np.int64
    assert stream[0] == stream[-1] == tokenizer.eos_id
    assert (stream == tokenizer.eos_id).sum() == len(texts) + 1
    assert tokenizer.decode(stream, skip_special=True) == "".join(texts)
    assert tokenizer.token_bytes[stream].sum() == sum(len(text.encode()) for text in texts)


def test_joined_corpora_hold_each_text_once_and_none_held_out_that_is_trained():
    def row(doc, split, text):
        return {"doc": doc, "split": split, "source": "files", "text": text, "sha256": text}

    one = [row("a", "test", "x"), row("b", "train", "y"), row("c", "train", "z")]
    two = [row("d", "train", "x"), row("e", "validation", "y")]
    for tables in ((one, two), (two, one)):
        joined = {doc.sha256: doc.split for doc in join_corpora(tables)}
        assert joined == {"x": "train", "y": "train", "z": "train"}


def test_tokenizer_reads_training_text_only(corpus):
    documents = join_corpora([corpus])
    texts = training_texts(documents, 10_000_000)
    assert "".join(texts) == "".join(doc.text for doc in documents if doc.split == "train")
    cut = training_texts(documents, 1000)
    assert sum(len(text.encode()) for text in cut) in range(990, 1001)
    with pytest.raises(BadCorpus, match="no training text"):
        training_texts([doc for doc in documents if doc.split == "test"], 1000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"training": SETTINGS["training"] | {"sequence_length": 100_000}}, BadTraining, "too few"),
        ({"training": SETTINGS["training"] | {"learning_rate": -1.0}}, BadTraining, "above 0"),
        (
            {"architecture": SETTINGS["architecture"] | {"num_heads": 3}},
            BadArchitecture,
            "num_kv_heads",
        ),
    ],
)
def test_bad_settings_leave_nothing(corpus, tokenizer_dir, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        train_model(
            [corpus], tokenizer_dir, SETTINGS | change, runtime=RUNTIME, model=tmp_path / "m"
        )
    assert list(tmp_path.iterdir()) == []


def test_missing_gpu_is_named(corpus, tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoDevice, match="cuda"):
        train_model(
            [corpus],
            tokenizer_dir,
            SETTINGS,
            runtime=RUNTIME | {"device": "cuda"},
            model=tmp_path / "m",
        )


def test_unknown_source_names_the_known_ones():
    with pytest.raises(BadCorpus, match="stdlib, packages, pydoc, files or hub"):
        build_corpus({"source": "web"}, seed=0)


@pytest.mark.parametrize("source", ["stdlib", "pydoc"])
def test_corpus_rows_are_repeatable_and_fit_the_schema(source, tmp_path):
    rows = build_corpus({"source": source, "max_bytes": 200_000}, seed=2)
    assert rows == build_corpus({"source": source, "max_bytes": 200_000}, seed=2)
    write_table(tmp_path / "corpus.parquet", rows, CORPUS)
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert sum(row["bytes"] for row in rows) <= 200_000
