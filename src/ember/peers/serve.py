"""The peer's side of a comparison: one adapter, served over standard input and output.

    PYTHON serve.py ADAPTER

runs in the environment that the peer is installed in: it needs the standard library and what the
adapter itself imports, and Python 3.9 or newer. Every line is one JSON object.

    to the peer                              from the peer
    the setup (see `ember.peers.client`)     {"event": "ready", "import_s", "load_s", "versions", …}
    {"prompt": [ids], "new_tokens": n}       {"event": "run", "ttft_s", "total_s", "tokens": [ids]}
    …                                        …
    end of input                             {"event": "done"}

A setup with `probe` ends after the imports: it asks whether the peer is installed. Whatever fails
is one line {"event": "error", "missing": …, "reason": …} and exit status 1; `missing` says that an
import failed, so that the peer is not installed rather than broken. Generation is greedy and goes
on to `new_tokens` whatever is generated.

An adapter has `imports(setup)`, which raises ImportError where the peer is not installed, and
`load(setup)`, which gives a function (prompt, new_tokens) -> (ttft_s, total_s, tokens) and what the
"ready" line says of the peer (`versions`, `kv_cache`, and what is not as usual of `threads`,
`kv_dtype` and `ttft_until`). A fourth item of what the function gives goes into the "run" line.
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
        if setup.get("temperature", 0):
            raise ValueError("only greedy generation is compared: set temperature to 0")
        began = time.perf_counter()
        adapter.imports(setup)
        imported = time.perf_counter()
        if setup.get("probe"):
            answer("ready", import_s=imported - began)
            return 0
        generate, about = adapter.load(setup)
        loaded = time.perf_counter()
        usual = {"threads": setup["threads"], "kv_dtype": setup["dtype"], "ttft_until": "logits"}
        answer("ready", import_s=imported - began, load_s=loaded - imported, **usual | about)
        for line in stdin:
            request = json.loads(line)
            ttft_s, total_s, tokens, *more = generate(request["prompt"], request["new_tokens"])
            answer("run", ttft_s=ttft_s, total_s=total_s, tokens=tokens, **dict(*more))
        answer("done")
    except Exception as error:
        import traceback

        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        answer("error", missing=isinstance(error, ImportError), reason=reason)
        return 1
    return 0


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
