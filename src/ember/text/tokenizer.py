"""Tokenizers: a byte-level BPE trained here and saved as Transformers expects, and any other of a
model directory, loaded without Transformers.

Of one trained here any text survives `decode(encode(text))`, since the alphabet is the 256 bytes;
its one special token, `<|endoftext|>`, begins, separates and pads texts. Splitting before the
merges is GPT-2's, which `llama.cpp` knows by the name "gpt-2".
"""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from ember.records.atomic import write_text
from ember.records.errors import EmberError
from ember.records.foreign import cause_of, read_bytes, read_object

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB = 257  # the bytes and the special token
MAX_BYTES = 256 << 20  # of a tokenizer.json; Gemma's has 33 MB
REMEDY = "Give a directory with a tokenizer.json, or let the workflow train one (train_tokenizer)."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class BadTokenizer(EmberError):
    """A tokenizer that cannot be trained or loaded; the message says why and what to change."""


class Tokenizer:
    """Ids of text and text of ids.

    `encode` takes special tokens such as `<|endoftext|>` in a text for what they are, as
    Transformers does, unless `parse_special` is false: then no text can end a document.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_token: str = END_OF_TEXT):
        """`eos_token`: the text of the token that ends texts; `eos_id` is None if there is none."""
        self._backend = backend
        self.vocab_size = backend.get_vocab_size()
        self.eos_id: int | None = backend.token_to_id(eos_token)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of what a model is to continue, with the tokens that its own tokenizer puts
        around a text: a BOS before it, of most models that were trained with one."""
        return self._backend.encode(text, add_special_tokens=True).ids

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids; no token is added before or after."""
        return self.encode_batch([text], parse_special=parse_special)[0]

    def encode_batch(self, texts: list[str], *, parse_special: bool = True) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        backend = self._backend if parse_special else self._plain
        return [item.ids for item in backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text each token stands for, (vocab_size,) int64; 0 for special tokens.

        Raises `BadTokenizer` for a tokenizer whose alphabet is not the bytes.
        """
        if not isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel):
            raise BadTokenizer(
                "the bytes of a token are known for byte-level tokenizers only.\n"
                "Use one that was trained by this workflow."
            )
        special = self._backend.get_added_tokens_decoder()
        return np.array(
            [
                # A character of the byte-level alphabet is one byte.
                0 if index in special else len(self._backend.id_to_token(index))
                for index in range(self.vocab_size)
            ],
            dtype=np.int64,
        )

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries (fewer if the texts have too few pairs)."""
    if vocab_size < MIN_VOCAB:
        raise BadTokenizer(
            f"vocab_size {vocab_size} is below {MIN_VOCAB}, the bytes and the special token.\n"
            "Raise tokenizer.vocab_size in the config."
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def save_tokenizer(backend: tokenizers.Tokenizer, directory: str | Path) -> list[Path]:
    """Writes the files from which `AutoTokenizer.from_pretrained` makes the same tokenizer."""
    directory = Path(directory)
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Or decoding would drop the space before a full stop.
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    contents = (backend.to_str(), _json(config), _json(special))
    paths = [directory / name for name in TOKENIZER_FILES]
    for path, content in zip(paths, contents, strict=True):
        write_text(path, content)
    return paths


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer or model directory. Raises `BadTokenizer`."""
    path = Path(directory) / "tokenizer.json"
    content = read_bytes(path, BadTokenizer, REMEDY, MAX_BYTES)
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
        backend.no_truncation()  # of a text's end, which some files ask for
        backend.no_padding()
        return Tokenizer(backend, _eos_token(path.parent))
    # The Rust library raises bare Exception for every malformed file, and panics at some.
    except BaseException as error:
        if isinstance(error, EmberError | KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise BadTokenizer(f"{path} is not a tokenizer: {cause_of(error)}.\n{REMEDY}") from None


def _eos_token(folder: Path) -> str:
    """The text of the token that ends texts, as tokenizer_config.json has it."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return END_OF_TEXT
    config = read_object(path, BadTokenizer, REMEDY)
    if isinstance(config.content.get("eos_token"), dict):  # a token with its options
        return config.object("eos_token").get("content", str)
    return config.get("eos_token", str, END_OF_TEXT)


def _json(value: dict) -> str:
    return json.dumps(value, indent=2) + "\n"
