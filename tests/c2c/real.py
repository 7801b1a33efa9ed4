"""A small real pair: two tokenizers with chat templates, two models of other architectures, and
questions in the published form, all made here."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ember.c2c.prompt import Chat
from ember.model.checkpoint import save_decoder
from tests.tiny import decoder_of, tiny

CORPUS = [
    "Answer the following question. Choices: A. iron B. copper C. wood D. glass",
    "The correct answer is the letter of the one correct option. Reply only with it.",
    "Which metal rusts when it is left in the rain for a long time?",
    "Briefly give the background knowledge that helps most with this question",
    "héhé naïve café Straße 北京 🚀 user assistant system",
] * 3
SPECIAL = {
    "qwen": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "llama": ("<s>", "</s>", "<unk>"),
}
TEMPLATES = {
    # Thinking off writes an empty thought, as Qwen3's does.
    "qwen": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}"
    ),
    "llama": (
        "<s>{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
}


def backend(kind: str, corpus=CORPUS, vocabulary: int = 400) -> tokenizers.Tokenizer:
    """`qwen`: byte-level BPE. `llama`: BPE over ▁-words that falls back to bytes."""
    if kind == "qwen":
        found = tokenizers.Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        special = [*SPECIAL[kind]]
    else:
        found = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        found.normalizer = normalizers.Replace(" ", "▁")
        found.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        found.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
        special = [*SPECIAL[kind], *(f"<0x{byte:02X}>" for byte in range(256))]
        corpus = [text.encode("ascii", "ignore").decode() for text in corpus]  # the rest: bytes
        vocabulary += 256
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    found.train_from_iterator(corpus, trainer)
    if kind == "llama":  # bytes are tokens like others, not special ones
        content = json.loads(found.to_str())
        content["added_tokens"] = content["added_tokens"][: len(SPECIAL[kind])]
        found = tokenizers.Tokenizer.from_str(json.dumps(content))
    return found


def chat(kind: str, vocabulary: int = 400, **changes) -> Chat:
    return Chat(fast(kind, vocabulary, **changes), kind)


def fast(kind: str, vocabulary: int = 400, **changes) -> PreTrainedTokenizerFast:
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL[kind], strict=True))
    found = PreTrainedTokenizerFast(tokenizer_object=backend(kind, vocabulary=vocabulary), **names)
    found.chat_template = TEMPLATES[kind]
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def model(folder: Path, kind: str, model_type: str, *, seed: int, **sizes) -> Path:
    """A model directory in Hugging Face format with tokenizer and template."""
    tokenizer = fast(kind)
    arch = tiny(
        model_type,
        vocab_size=len(tokenizer),
        max_positions=1024,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    save_decoder(decoder_of(arch, seed), folder, weights="pretrained")
    tokenizer.save_pretrained(folder)
    return folder


def openbookqa(path: Path, count: int, form: str = "hub") -> Path:
    """Questions as JSON lines: as the hub has them, or as first published."""
    things = ("iron", "copper", "wood", "glass", "rain", "metal", "time")
    rows = []
    for number in range(count):
        texts = [f"{things[(number + at) % 7]} {number}" for at in range(4)]
        stem = f"Which of these {number} things rusts?"
        if form == "hub":
            row = {"id": f"q-{number}", "question_stem": stem}
            row["choices"] = {"text": texts, "label": list("ABCD")}
        else:
            listed = [{"text": t, "label": x} for t, x in zip(texts, "ABCD", strict=True)]
            row = {"id": f"q-{number}", "question": {"stem": stem, "choices": listed}}
        rows.append(row | {"answerKey": "ABCD"[number % 4]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def projector_state(shape, *, seed: int = 0, gate: float = 1.0) -> dict[str, torch.Tensor]:
    """A layer's state under the published names, written down here and not taken from the code."""
    g = torch.Generator().manual_seed(seed)
    joined = shape.source_heads * shape.source_dim + shape.heads * shape.dim
    hidden, out = shape.hidden, shape.heads * shape.dim
    state = {}
    for branch in ("key", "value"):
        sizes = {"in.weight": (hidden, joined), "in.bias": (hidden,)}
        for block in ("mlp1", "scalar_mlp2", "proj_mlp2"):
            sizes[f"{block}.blocks.0.norm.weight"] = (hidden,)
            sizes[f"{block}.blocks.0.w1.weight"] = (hidden, hidden)
            sizes[f"{block}.blocks.0.w2.weight"] = (hidden, hidden)
        sizes |= {"scalar_head.weight": (shape.heads, hidden), "scalar_head.bias": (shape.heads,)}
        sizes |= {"proj_out.weight": (out, hidden), "proj_out.bias": (out,)}
        for name, size in sizes.items():
            state[f"{branch}_{name}"] = 0.3 * torch.randn(size, generator=g)
        state[f"{branch}_gate_logit"] = torch.tensor(gate)
    return state | {"gate_temperature": torch.tensor(0.001)}


def published(folder: Path, shape, sources, *, gates=None, order=None) -> Path:
    """A published fuser's folder; `order[layer]` is the file that a layer has."""
    final = folder / "final"
    final.mkdir(parents=True)
    order = order or range(len(sources))
    for layer, number in enumerate(order):
        gate = 1.0 if gates is None else gates[layer]
        torch.save(projector_state(shape, seed=layer, gate=gate), final / f"projector_{number}.pt")
        (final / f"projector_{number}.json").write_text("{}")
    layers = {
        str(layer): [[source, number]]
        for layer, (source, number) in enumerate(zip(sources, order, strict=True))
    }
    (final / "projector_config.json").write_text(json.dumps({"0": {"1": layers}}))
    config = {"model": {"is_do_alignment": True, "alignment_strategy": "longest"}}
    (folder / "config.json").write_text(json.dumps(config))
    return final
