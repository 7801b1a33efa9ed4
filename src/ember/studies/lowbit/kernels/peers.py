"""Other engines that decode with 4-bit weights of the same model: llama.cpp's Q4_0, vLLM's NVFP4.

Each is a process of its own (`ember.peers`) with a file that is made of the model's weights. It is
timed by calls alone: one token of every candidate, then all tokens, on prompts of which none came
before.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ember.peers.client import Peer, PeerFailed, PeerMissing, peer_of, versions_of
from ember.records.errors import EmberError

WEIGHTS = {"llama_cpp_decode": ("q4_0", "packed"), "vllm_offline": ("nvfp4", "dense")}  # and head
# llama.cpp's AMX products of Q4_0 crash (ggml-org/llama.cpp issue 20824).
OWN = {"llama_cpp_decode": {"use_extra_bufts": False}}
TIMEOUT_S = 300


def start_peers(
    stack: ExitStack, peers: Mapping[str, Mapping], model: str | Path, packed, setup: Mapping
) -> tuple[dict[str, Peer], dict[str, dict]]:
    """The peers that run, by name, and of each what its rows say; of those that do not, why.

    `packed`: the decoder with NVFP4 layers and a dense head, or None. `setup`: see
    `ember.peers.client`, but for the model.
    """
    running, facts = {}, {}
    for name, framework in peers.items():
        format, head = WEIGHTS[framework["adapter"]]
        facts[name] = {"engine": name, "format": format, "head": head}
        try:
            running[name], found = _start(stack, framework, model, packed, dict(setup))
            facts[name] |= found
        except EmberError as error:  # not installed, failed, or without such weights of this model
            facts[name] |= why_not(error)
    return running, facts


def why_not(error: EmberError) -> dict:
    """Columns of a peer that does not run."""
    status = "failed" if isinstance(error, PeerFailed) else "skipped"
    return {"status": status, "reason": str(error).splitlines()[0]}


def times_of(
    peer: Peer, prompts: Callable[[], Sequence[int]], candidates: int, new_tokens: int
) -> tuple[float, float]:
    """Milliseconds until the first token, and of each later step. Raises PeerFailed."""
    how = {"candidates": candidates}
    first = peer.generate([prompts()], 1, **how)["total_s"]
    whole = peer.generate([prompts()], new_tokens, **how)["total_s"]
    if whole <= first:
        raise PeerFailed("all tokens took no longer than the first\nask for more tokens")
    return 1e3 * first, 1e3 * (whole - first) / (new_tokens - 1)


def step_weight_bytes(decoder) -> int:
    """Bytes of weights that a step reads: layers, norm and head, packed or not."""
    head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    parts = (decoder.layers, decoder.norm, head)
    return sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))


def _start(stack: ExitStack, framework: Mapping, model, packed, setup: dict) -> tuple[Peer, dict]:
    from ember.model.folder import read_architecture, weights_kind
    from ember.model.gguf import export_gguf
    from ember.model.packed_folder import save_compressed

    if framework["adapter"] == "vllm_offline" and not setup["device"].startswith("cuda"):
        raise PeerMissing("vLLM multiplies by NVFP4 weights on a GPU alone\nrun it on one")
    arguments = OWN.get(framework["adapter"], {}) | (framework.get("arguments") or {})
    framework = {**framework, "arguments": arguments}
    with peer_of(framework, setup, TIMEOUT_S) as probe:
        probe.probe()  # before its weights are written
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="ember-lowbit-")))
    if framework["adapter"] == "llama_cpp_decode":
        gguf = export_gguf(model, None, folder / "model.gguf", dtype="Q4_0")
        setup |= {"model": str(model), "gguf": str(gguf)}
        size = _read_bytes(gguf, read_architecture(model).tie_embeddings)
    elif packed is None:
        raise PeerMissing("nvfp4 is not among lowbit.kernels.decoded\nadd it")
    else:
        made = save_compressed(packed, folder / "model", weights=weights_kind(model))
        setup |= {"model": str(made), "weights": "files"}
        size = step_weight_bytes(packed)
    peer = stack.enter_context(peer_of(framework, setup, TIMEOUT_S))
    ready = peer.start()
    said = [versions_of(ready), *([ready["weights_format"]] if "weights_format" in ready else [])]
    return peer, {"backend": ", ".join(said), "weight_bytes": size}


def _read_bytes(gguf: Path, tied: bool) -> int:
    """Bytes of a file's tensors that a step reads: of an embedding only where it is the head."""
    from gguf import GGUFReader

    unread = () if tied else ("token_embd.weight",)
    return sum(int(one.n_bytes) for one in GGUFReader(gguf).tensors if one.name not in unread)
