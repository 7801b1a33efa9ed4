"""vLLM's adapter against a stand-in for the package, which cannot be installed here.

The stand-in has the signatures of vLLM 0.26.0 as read in its sources (`entrypoints/llm.py`,
`sampling_params.py`, `outputs.py`): what the adapter passes must be among them.
"""

import io
import json
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest

from ember.peers import serve

SETUP = {"model": "/m", "weights": "random", "dtype": "bfloat16", "seed": 7, "capacity": 16}
SETUP |= {"threads": 1, "device": "cuda", "gguf": None, "candidates": 2}
REQUEST = {"prompts": [[1, 2], [3, 4]], "candidates": 2, "new_tokens": 3, "temperature": 1.0}


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    detokenize: bool = True


class FlashAttention:
    @staticmethod
    def get_name():
        return "FLASH_ATTN"


class LLM:
    made: ClassVar[list] = []

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        **engine_args,
    ):
        assert set(engine_args) <= {"max_model_len", "load_format", "enable_prefix_caching"}
        assert skip_tokenizer_init, "the model's folder has no tokenizer"
        self.given = {"model": model, "memory": gpu_memory_utilization} | engine_args
        layer = types.SimpleNamespace(attn_backend=FlashAttention)
        compilation = types.SimpleNamespace(static_forward_context={"0": layer, "1": object()})
        config = types.SimpleNamespace(compilation_config=compilation)
        self.llm_engine = types.SimpleNamespace(vllm_config=config)
        LLM.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert not use_tqdm
        found = []
        for prompt in prompts:
            room = self.given["max_model_len"] - len(prompt["prompt_token_ids"])
            assert sampling_params.ignore_eos
            assert not sampling_params.detokenize
            assert sampling_params.n == 1 or sampling_params.temperature > 0
            assert sampling_params.max_tokens <= room
            # Sequences, though not always lists.
            outputs = [
                types.SimpleNamespace(index=i, token_ids=(i,) * sampling_params.max_tokens)
                for i in range(sampling_params.n)
            ]
            found.append(types.SimpleNamespace(outputs=outputs, finished=True))
        return found


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in in the package's place."""
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.26.0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made = []


def ask(*lines: dict) -> list[dict]:
    answered = io.StringIO()
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    assert serve.main(["vllm_offline"], io.StringIO(asked), answered) == 0
    return [json.loads(line) for line in answered.getvalue().splitlines()]


@pytest.mark.usefixtures("vllm")
def test_candidates_come_by_prompt_with_the_prefix_cache_on():
    ready, run, _ = ask(SETUP | {"arguments": {"gpu_memory_utilization": 0.5}}, REQUEST)
    assert run["tokens"] == [[[0] * 3, [1] * 3]] * 2
    assert ready["versions"] == {"vllm": "0.26.0"}
    assert (ready["attention"], ready["prompt_kv"]) == ("FLASH_ATTN", "prefix cache")
    assert LLM.made[0].given == {
        "model": "/m",
        "memory": 0.5,
        "max_model_len": 16,
        "load_format": "dummy",
        "enable_prefix_caching": True,
    }


@pytest.mark.usefixtures("vllm")
def test_greedy_candidates_are_requests_of_their_own():
    _, run, _ = ask(SETUP | {"arguments": {}}, REQUEST | {"temperature": 0.0})
    assert run["tokens"] == [[[0] * 3, [0] * 3]] * 2


@pytest.mark.usefixtures("vllm")
def test_weights_are_read_where_there_are_files_and_other_arguments_win():
    arguments = {"enable_prefix_caching": False}
    ready, _ = ask(SETUP | {"weights": "files", "arguments": arguments})
    assert ready["prompt_kv"] == "of each candidate"
    assert LLM.made[0].given["load_format"] == "auto"
