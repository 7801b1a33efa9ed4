"""Go/no-go rules: tables and thresholds in, verdicts out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import median

from ember.measure.statistics import ends, ends_in_words
from ember.studies.p1.gates.tables import GATES
from ember.studies.p1.lora_alignment.tables import LORA_ALIGNMENT, LORA_WEIGHTS
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_LATENCY_SUMMARY
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.p1.rollout.tables import point_name
from ember.studies.p1.speed.tables import ENGINE_SPEED
from ember.studies.paper.decisions.tables import DECISIONS
from ember.studies.rows import records
from ember.studies.steps import makes
from ember.studies.streaming.decisions.tables import STREAMING_DECISIONS

Rows = Sequence[Mapping]
_NAMES = ("decision", "subject", "value", "low", "high", "threshold", "verdict", "detail")


@makes(DECISIONS)
def decide(
    gates,
    share,
    savings,
    speed,
    alignment,
    weights,
    latency,
    exact,
    streaming=(),
    *,
    thresholds: Mapping,
    operating: Mapping,
    scale: str,
) -> list[dict]:
    """Rows of `DECISIONS` from P1's tables, the thresholds of `p1.decisions` and the operating
    point, the first of `p1.rollout`; after them the programmes' own decisions."""
    limit = thresholds["max_lora_ratio_to_limit"]
    rows = [
        _gates(records(gates, GATES)),
        *_prefill_share(records(share, PREFILL_SHARE), operating, thresholds["low_prefill_share"]),
        *_prefix_savings(records(savings, PREFIX_SAVINGS), thresholds["min_prefix_savings"]),
        *_engine_speed(records(speed, ENGINE_SPEED), thresholds["min_engine_ratio"]),
        *_lora_alignment(records(alignment, LORA_ALIGNMENT), thresholds),
        *_lora_weights(records(weights, LORA_WEIGHTS), thresholds),
        *_lora_latency(records(latency, LORA_LATENCY_SUMMARY), limit),
        *_lora_exact(records(exact, LORA_EXACT)),
    ]
    about = {"programme": "p1", "evidence": "measured", "scale": scale}
    own = [dict(zip(_NAMES, row, strict=True)) | about for row in rows]
    return own + records(streaming, STREAMING_DECISIONS)


def _gates(gates: Rows) -> tuple:
    held = sum(gate["passed"] for gate in gates) / len(gates)
    skipped = [gate["gate"] for gate in gates if gate["status"] == "skipped"]
    verdict = "measure" if held == 1.0 else "do not measure"
    detail = "share of gates that hold" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    return "hard_gates", f"{len(gates)} gates", held, None, None, 1.0, verdict, detail


def _prefill_share(share: Rows, operating: Mapping, threshold: float) -> Iterator[tuple]:
    """P1-1.1: the rule at the operating point, and the same of one rollout beside it."""
    lengths = operating["context"], operating["generation"]
    batched = point_name(operating)
    for point in share:
        alone = point["mode"] == "single" and (point["context"], point["generation"]) == lengths
        if point["status"] != "ok" or not (alone or point["point"] == batched):
            continue
        low, high = map(float, ends(point, "prefill_share"))
        whose = "one rollout" if alone else "a round's rollout"
        if high < threshold:
            verdict = "low: argue by accumulation over rounds x candidates, sync and memory"
        elif low >= threshold:
            verdict = f"high: argue by the prefill of {whose}"
        else:
            verdict = "undecided: the threshold lies within the spread"
        name = f"one rollout, {lengths[0]}/{lengths[1]}" if alone else f"operating point, {batched}"
        detail = f"prefill time / time of {whose}, median; {ends_in_words([point['n']])}"
        value = float(point["prefill_share_median"])
        yield "prefill_share", name, value, low, high, threshold, verdict, detail


def _prefix_savings(savings: Rows, threshold: float) -> Iterator[tuple]:
    for point in savings:
        if abs(2 * point["prefix_tokens"] - point["prompt_tokens"]) > 1:
            continue
        names = ("ratio_to_operations", "ratio_low", "ratio_high")
        value, low, high = (float(point[name]) for name in names)
        verdict = _beside(low, high, threshold, "reached", "falls short")
        subject = f"half of {point['prompt_tokens']} tokens"
        detail = (
            f"time saved by reusing half of the prompt ({point['savings']:.3f}) over operations "
            f"saved ({point['expected_with_attention']:.3f}), 95 % interval over "
            f"{point['documents']} documents"
        )
        yield "prefix_savings", subject, value, low, high, threshold, verdict, detail


def _engine_speed(speed: Rows, threshold: float) -> Iterator[tuple]:
    ratios = [row["ratio_to_transformers"] for row in speed if row["engine"] == "ember"]
    if values := [ratio for ratio in ratios if ratio is not None]:
        low, high = min(values), max(values)
        verdict = _beside(low, high, threshold, "reached", "falls short")
        subject = "decode against Transformers generate"
        detail = f"median ratio of tokens/s, least to greatest of {len(values)} paired runs"
        yield "engine_speed", subject, median(values), low, high, threshold, verdict, detail


def _lora_alignment(alignment: Rows, thresholds: Mapping) -> Iterator[tuple]:
    """P1-3.4: float32 by the difference, half precision by the error against PEFT's own."""
    name, threshold = "lora_alignment", thresholds["max_lora_difference"]
    single = [row for row in alignment if row["dtype"] == "float32"]
    for reference in dict.fromkeys(row["reference"] for row in single):
        found = [row["delta_max_abs_diff"] for row in single if row["reference"] == reference]
        verdict = "aligned" if max(found) < threshold else "not aligned"
        detail = "largest delta_max_abs_diff of logits over adapters, projections and paths"
        subject = f"float32 against {reference}"
        yield name, subject, max(found), None, None, threshold, verdict, detail
    threshold = thresholds["max_lora_error_ratio"]
    half = [row for row in alignment if row["dtype"] != "float32"]
    paths = dict.fromkeys(row["path"] for row in alignment)
    for dtype, path in product(dict.fromkeys(row["dtype"] for row in half), paths):
        wanted = (dtype, path, "peft_forward")
        group = [row for row in half if (row["dtype"], row["path"], row["reference"]) == wanted]
        if not group:
            continue
        worst = max(group, key=lambda row: row["error_ratio"])
        value, low, high = (worst[f"error_ratio{end}"] for end in ("", "_low", "_high"))
        own = "than PEFT's own error"
        verdict = _beside(low, high, threshold, f"larger {own}", f"smaller {own}")
        detail = (
            f"error to PEFT's float32 forward over that of PEFT's own forward in {dtype}; "
            f"the worst adapter ({worst['adapter']}), 95 % interval over prompts"
        )
        yield name, f"{dtype}, {path}", value, low, high, threshold, verdict, detail


def _lora_weights(weights: Rows, thresholds: Mapping) -> Iterator[tuple]:
    for dtype in dict.fromkeys(row["dtype"] for row in weights):
        found = [row["error_max_ulp"] for row in weights if row["dtype"] == dtype]
        name = "max_lora_ulp_float32" if dtype == "float32" else "max_lora_ulp"
        threshold = thresholds[name]
        verdict = "as computed" if max(found) <= threshold else "not as computed"
        detail = (
            "largest error of W_after - W_before against s·B·A, in units in the last place, of "
            f"{len(found)} matrices, whole and by two stages"
        )
        yield "lora_weights", dtype, max(found), None, None, threshold, verdict, detail


def _lora_latency(latency: Rows, threshold: float) -> Iterator[tuple]:
    for row in latency:
        if (row["implementation"], row["phase"]) != ("ember", "steady"):
            continue
        if row["operation"] not in ("apply", "replace"):
            continue
        value, scale = row["ratio_to_limit"], row["ratio_to_limit"] / row["ms_median"]
        low, high = (end * scale for end in ends(row, "ms"))
        verdict = _beside(low, high, threshold, "falls short", "near the limit")
        subject = f"{row['operation']}, base kept: {row['keep']}"
        detail = (
            f"{row['ms_median']:.3g} ms over {row['limit_ms']:.3g} ms, the adapted weights at the "
            f"copy bandwidth; {ends_in_words([row['n']])}"
        )
        yield "lora_latency", subject, value, low, high, threshold, verdict, detail


def _lora_exact(exact: Rows) -> Iterator[tuple]:
    for row in exact:
        verdict = "exact" if row["exact"] else "drifts"
        subject = f"{row['implementation']}, base kept: {row['keep']}"
        detail = (
            f"largest difference of a weight after {row['swaps']} replacements and a rollback; "
            f"the copy of the base takes {row['kept_bytes'] / row['model_bytes']:.1%} of the "
            "model's memory"
        )
        yield "lora_exact", subject, row["max_abs_diff"], None, None, 0.0, verdict, detail


def _beside(low: float, high: float, threshold: float, above: str, below: str) -> str:
    if low >= threshold:
        return above
    return below if high < threshold else "undecided: the threshold lies within the interval"
