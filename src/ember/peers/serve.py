"""The peer's side of a comparison: one adapter, served over standard input and output.

    PYTHON serve.py ADAPTER

runs in the environment that the peer is installed in: it needs the standard library and what the
adapter itself imports, and Python 3.9 or newer. Every line is one JSON object.

    to the peer                              from the peer
    the setup (see `ember.peers.client`)     {"event": "ready", "import_s", "load_s", "versions", …}
    a request                                {"event": "run", "total_s", "tokens", …}
    a stream                                 {"event": "stream", "nll", "fed", "ms", "visible"}
    …                                        …
    end of input                             {"event": "done"}

A request is `prompts` (lists of ids), `candidates` of each, `new_tokens` of each candidate and the
`temperature` (0: greedy; else of all tokens, without cuts). `tokens` are ids by prompt and
candidate; `total_s` is the wall clock from the call until they are on the host, taken here, the
same way for all. All go on to `new_tokens` whatever is generated.

A stream is `streams` (lists of ids of equal length), `prefill` (tokens to feed at once; all others
come one by one), and the budget: `peak` (tokens that a query sees at most, its own included),
`compression_interval` and `n_sink`, with what the adapter itself takes. `nll` is by stream the loss
of each token after the first, in nats; `fed`, `ms` and `visible` are by call the tokens that it
fed to each stream, the wall clock until their losses were on the host, taken here, and what its
last query saw.

A setup with `probe` ends after the imports: it asks whether the peer is installed. Whatever fails
is one line {"event": "error", "missing": …, "reason": …} and exit status 1; `missing` says that an
import failed, so that the peer is not installed rather than broken.

An adapter has `imports(setup)`, which raises ImportError where the peer is not installed, and
`load(setup)`, which gives a function (prompts, candidates, new_tokens, temperature) -> tokens, and
what the "ready" line says of the peer: `versions`, `attention`, `kv_cache`, `prompt_kv`, and what
is not as usual of `threads` and `kv_dtype`. What that dictionary holds when a run has ended
goes into the "run" line too, but for what "ready" has said. An adapter of streams gives instead a
function of a stream's fields that yields for each call what its last query saw, and the losses by
stream; its `rows` says how many streams it takes at once, if not any.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "adapters"


def main(arguments, stdin, answers) -> int:
    """Serve the adapter named by the only argument; the exit status."""

    def answer(event, **content):
        answers.write(json.dumps({"event": event, **content}) + "\n")
        answers.flush()

    try:
        adapter = load_adapter(arguments[0])
        setup = json.loads(stdin.readline())
        began = time.perf_counter()
        adapter.imports(setup)
        imported = time.perf_counter()
        if setup.get("probe"):
            answer("ready", import_s=imported - began)
            return 0
        generate, about = adapter.load(setup)
        loaded = time.perf_counter()
        ready = {"threads": setup["threads"], "kv_dtype": setup["dtype"], **about}
        answer("ready", import_s=imported - began, load_s=loaded - imported, **ready)
        for line in stdin:
            request = json.loads(line)
            if "streams" in request:
                answer("stream", **streamed(generate(**request), request))
                continue
            began = time.perf_counter()
            tokens = generate(**request)
            total_s = time.perf_counter() - began
            more = {name: value for name, value in about.items() if name not in ready}
            answer("run", total_s=total_s, tokens=tokens, **more)
        answer("done")
    except Exception as error:
        import traceback

        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        answer("error", missing=isinstance(error, ImportError), reason=reason)
        return 1
    return 0


def streamed(calls, request):
    """What a stream's calls gave, each timed."""
    nll, fed, ms, seen = [[] for _ in request["streams"]], [], [], []
    length = len(request["streams"][0])
    while sum(fed) < length:
        began = time.perf_counter()
        visible, found = next(calls)
        ms.append((time.perf_counter() - began) * 1e3)
        fed.append(1 if fed else request["prefill"])
        seen.append(visible)
        for row, losses in enumerate(found):
            nll[row].extend(losses)
    return {"nll": nll, "fed": fed, "ms": ms, "visible": seen}


def load_adapter(name):
    """The module adapters/NAME.py, by its path: its folder must not shadow anyone's packages."""
    spec = importlib.util.spec_from_file_location("adapter_" + name, FOLDER / (name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != here]
    # Libraries print what they like: their standard output goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    status = main(sys.argv[1:], sys.stdin, answers)
    answers.flush()
    sys.stderr.flush()
    os._exit(status)  # engines with workers may hang in their own clean-up
