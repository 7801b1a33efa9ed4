"""The workflow's own language model: trained, scored against its baselines, saved with its card."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ember.measure.device import resolve
from ember.measure.memory import require
from ember.measure.statistics import bootstrap, interval
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder, save_decoder
from ember.optim.lm import Recipe, Score, Windows, evaluate, train
from ember.optim.loop import BadTraining, state_key
from ember.studies.shared.corpora.make import join_corpora
from ember.studies.shared.models.tables import MODEL_CARD, TRAINING_LOG
from ember.studies.steps import makes
from ember.text.corpora import SPLITS, Document
from ember.text.ngram import NGram, unigram_log2_probs
from ember.text.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

NGRAM_ORDER = 5
RESAMPLES = 1000
RECIPE_KEYS = (
    *("steps", "batch_size", "sequence_length", "learning_rate", "warmup_steps", "weight_decay"),
    *("grad_clip", "validate_every", "optimizer"),
)


@makes(MODEL_CARD, TRAINING_LOG)
def train_model(
    corpora: Sequence,
    tokenizer: str | Path,
    settings: dict,
    *,
    runtime: dict,
    model: str | Path,
    state: str | Path | None = None,
    code: str = "",
) -> tuple[list[dict], list[dict]]:
    """Trains a decoder and returns rows of `MODEL_CARD` and of `TRAINING_LOG`.

    `corpora` are tables CORPUS (paths or rows); `settings` is an entry of the config's models with
    `source: train`; `runtime` has device, dtype and seed. `model` becomes a Hugging Face model
    directory with tokenizer, README.md and ember.json. A run that was stopped resumes from `state`,
    unless settings, data or `code` (a hash) have changed. It still stands when this returns: who
    asked for it removes it once the rows are written, or a job killed just then would train anew.
    """
    training = settings["training"]
    words = load_tokenizer(tokenizer)
    documents = join_corpora(corpora)
    streams = {split: token_stream(documents, words, split) for split in SPLITS}
    arch = _architecture(settings, words)
    given = {key: training[key] for key in RECIPE_KEYS if training.get(key) is not None}
    start = words.eos_id if training.get("start_token") else None
    recipe = Recipe(**given, seed=runtime["seed"], start_token=start)
    device = resolve(runtime["device"])
    autocast = torch.bfloat16 if device != "cpu" and runtime["dtype"] != "float32" else None
    require(_training_bytes(arch, recipe), device, f"training {arch.parameter_count():,} weights")
    log.info(
        "training %d parameters on %d tokens (%d distinct there)",
        arch.parameter_count(),
        recipe.tokens,
        len(streams["train"]),
    )

    def validate(decoder) -> float:
        stream = streams["validation"]
        return _score(decoder, stream, recipe, training, autocast, context=0).bits_per_byte(
            stream, words.token_bytes
        )

    decoder = random_decoder(arch, runtime["seed"], device)
    state = Path(state) if state is not None else None
    rows = train(
        decoder,
        streams["train"],
        recipe,
        validate=validate,
        state=state,
        key=state_key(
            recipe=recipe,
            architecture=arch,
            validation_tokens=training["validation_tokens"],
            data=[doc.sha256 for doc in documents],
            tokenizer=_sha256((Path(tokenizer) / "tokenizer.json").read_bytes()),
            autocast=str(autocast),
            code=code,
        ),
        checkpoint_seconds=training.get("checkpoint_seconds", 30.0),
        autocast=autocast,
    )
    scores = {
        split: _score(
            decoder, streams[split], recipe, training, autocast, recipe.sequence_length // 4
        )
        for split in ("validation", "test")
    }
    card = model_card(arch, recipe, rows, streams, scores, words)
    labels = {"evidence": "measured", "weights": "trained"}
    card = [row | labels for row in card]
    rows = [row | labels for row in rows]
    with TemporaryDirectory() as folder:
        readme = Path(folder) / "README.md"
        readme.write_text(_readme(arch, recipe, card, rows, documents), "utf-8")
        about = {
            "seed": runtime["seed"],
            "steps": recipe.steps,
            "tokens": recipe.tokens,
            "corpus_sha256": _sha256(*(doc.sha256.encode() for doc in documents)),
        }
        files = [Path(tokenizer) / name for name in TOKENIZER_FILES]
        save_decoder(decoder, model, about=about, extra_files=[*files, readme])
    log.info("saved %s", model)
    return card, rows


def token_stream(documents: Sequence[Document], tokenizer: Tokenizer, split: str) -> np.ndarray:
    """Token ids (N,) int64 of a split's documents, each between two `<|endoftext|>`."""
    texts = [doc.text for doc in documents if doc.split == split]
    if not texts:
        raise BadTraining(
            f"the corpora have no documents in the {split} split.\nGive them more documents."
        )
    end = tokenizer.eos_id
    parts = [np.array([end])]
    for tokens in tokenizer.encode_batch(texts, parse_special=False):
        parts.append(np.array([*tokens, end]))
    return np.concatenate(parts).astype(np.int64)


def model_card(
    arch: Architecture,
    recipe: Recipe,
    rows: Sequence[dict],
    streams: dict[str, np.ndarray],
    scores: dict[str, Score],
    tokenizer: Tokenizer,
) -> list[dict]:
    """Size, training and bits per byte, beside baselines that saw the same training tokens."""
    seen = Windows(streams["train"], recipe.sequence_length, recipe.seed).seen(
        recipe.steps * recipe.batch_size
    )
    last = rows[-1]
    epochs = recipe.tokens / len(streams["train"])
    card = [
        _row("parameters", arch.parameter_count(), "count", detail=f"{arch.model_type} decoder"),
        _row(
            "tokens_trained",
            recipe.tokens,
            "tokens",
            "train",
            f"{recipe.steps} steps of {recipe.batch_size} sequences of {recipe.sequence_length}",
        ),
        _row(
            "tokens_distinct", len(seen), "tokens", "train", f"{epochs:.2f} epochs of the corpora"
        ),
        _row("training_seconds", last["seconds"], "s", detail="validation left out"),
        _row("training_speed", last["tokens_per_s"], "tokens/s", detail="validation left out"),
        _row("train_loss", last["train_loss"], "nats/token", "train", "mean of the last steps"),
    ]
    ngram = NGram.fit(seen, tokenizer.vocab_size, NGRAM_ORDER)
    context = recipe.sequence_length // 4
    for split, score in scores.items():
        stream = streams[split]
        token_bytes = tokenizer.token_bytes[stream[score.positions]]
        card.append(
            _row(
                "bits_per_byte",
                _bits_per_byte(score.log2_probs, token_bytes),
                "bits/B",
                split,
                f"{score.positions.size} tokens, each with {context} or more before it",
            )
        )
        baselines = {
            "unigram": unigram_log2_probs(seen, stream, tokenizer.vocab_size),
            "ngram": ngram.log2_probs(stream),
        }
        for name, log2_probs in baselines.items():
            theirs = log2_probs[score.positions]
            kind = f"Kneser-Ney of order {ngram.order}" if name == "ngram" else "frequencies"
            card.append(
                _row(
                    f"{name}_bits_per_byte",
                    _bits_per_byte(theirs, token_bytes),
                    "bits/B",
                    split,
                    f"{kind} of the {len(seen)} tokens trained on, same held-out tokens",
                )
            )
            card.append(_gain(name, split, score.log2_probs, theirs, token_bytes, recipe.seed))
    return card


def _gain(name: str, split: str, ours, theirs, token_bytes, seed: int) -> dict:
    """What the model saves against a baseline, with a bootstrap interval over sequences."""
    saved, size = (ours - theirs).sum(1), token_bytes.sum(1)

    def gain(drawn: np.ndarray) -> np.ndarray:
        return drawn[..., 0].sum(1) / drawn[..., 1].sum(1)

    pairs = np.stack([saved, size], axis=1)
    low, high = interval(bootstrap(pairs, np.random.default_rng(seed), RESAMPLES, gain))
    verdict = "the model is better" if low > 0 else f"the {name} is better"
    if low <= 0 <= high:
        verdict = "no difference"
    detail = f"{verdict} (95 % interval, bootstrap over {len(saved)} sequences)"
    row = _row(f"gain_over_{name}", saved.sum() / size.sum(), "bits/B", split, detail)
    return row | {"low": low, "high": high}


def _row(metric: str, value: float, unit: str, split: str = "all", detail: str = "") -> dict:
    row = {"metric": metric, "value": float(value), "unit": unit, "split": split}
    return row | {"low": None, "high": None, "detail": detail}


def _bits_per_byte(log2_probs: np.ndarray, token_bytes: np.ndarray) -> float:
    return -float(log2_probs.sum()) / int(token_bytes.sum())


def _score(
    decoder, stream: np.ndarray, recipe: Recipe, training: dict, autocast, context: int
) -> Score:
    return evaluate(
        decoder,
        stream,
        tokens=training["validation_tokens"],
        length=recipe.sequence_length,
        batch_size=recipe.batch_size,
        context=context,
        start_token=recipe.start_token,
        autocast=autocast,
    )


def _architecture(settings: dict, tokenizer: Tokenizer) -> Architecture:
    given = {"vocab_size": tokenizer.vocab_size}
    given |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_id)
    return Architecture.make(settings.get("preset"), **settings["architecture"] | given)


def _training_bytes(arch: Architecture, recipe: Recipe) -> int:
    """About what training takes: weights, gradients, two moments; activations; logits thrice."""
    tokens = recipe.batch_size * recipe.sequence_length
    attention = (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
    layer = 6 * arch.hidden_size + 4 * attention + 4 * arch.intermediate_size
    activations = tokens * (arch.num_layers * layer + 3 * arch.vocab_size)
    return 4 * (4 * arch.parameter_count() + activations)


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _readme(arch, recipe: Recipe, card, rows, documents: Sequence[Document]) -> str:
    """The directory's model card, in the hub's format."""
    sources = sorted({doc.source for doc in documents})
    metrics = "\n".join(
        f"| {row['metric']} | {row['split']} | {_number(row['value'])} | "
        + ("" if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}")
        + f" | {row['unit']} | {row['detail']} |"
        for row in card
    )
    curve = "\n".join(
        f"| {row['step']} | {row['tokens']} | {row['train_loss']:.3f} | "
        f"{row['val_bits_per_byte']:.3f} |"
        for row in rows
        if row["val_bits_per_byte"] is not None
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{arch.model_type}, ember]
---

# A small {arch.model_type} model

{arch.parameter_count():,} parameters: {arch.num_layers} layers, hidden size {arch.hidden_size},
{arch.num_heads} query and {arch.num_kv_heads} KV heads of {arch.head_dim}, vocabulary
{arch.vocab_size}. Trained from random weights on {len(documents)} documents
(sources: {", ".join(sources)}) with {recipe.optimizer}, peak learning rate
{recipe.learning_rate:g}, seed {recipe.seed}. It is there to measure inference with; it is no
assistant.

| metric | split | value | 95 % interval | unit | detail |
|---|---|---|---|---|---|
{metrics}

## Loss curve

| step | tokens | train loss (nats/token) | validation (bits/byte) |
|---|---|---|---|
{curve}
"""
