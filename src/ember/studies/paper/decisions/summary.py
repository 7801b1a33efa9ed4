"""Go/no-go rules: tables and thresholds in, verdicts out (DESIGN "Decisions are data")."""

from collections.abc import Mapping, Sequence
from statistics import median

from ember.studies.p1.gates.tables import GATES
from ember.studies.p1.lora_alignment.tables import LORA_ALIGNMENT, LORA_WEIGHTS
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_LATENCY_SUMMARY
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.p1.speed.tables import ENGINE_SPEED
from ember.studies.paper.decisions.tables import DECISIONS
from ember.studies.rows import records
from ember.studies.steps import makes

Rows = Sequence[Mapping]


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
    *,
    thresholds: Mapping,
    scale: str,
) -> list[dict]:
    """Rows of `DECISIONS` from P1's tables and the thresholds of `p1.decisions`."""
    limit = thresholds["max_lora_ratio_to_limit"]
    rows = [
        _gates(records(gates, GATES)),
        *_prefill_share(records(share, PREFILL_SHARE), thresholds["low_prefill_share"]),
        *_prefix_savings(records(savings, PREFIX_SAVINGS), thresholds["min_prefix_savings"]),
        *_engine_speed(records(speed, ENGINE_SPEED), thresholds["min_engine_ratio"]),
        *_lora_alignment(records(alignment, LORA_ALIGNMENT), thresholds),
        *_lora_weights(records(weights, LORA_WEIGHTS), thresholds),
        *_lora_latency(records(latency, LORA_LATENCY_SUMMARY), limit),
        *_lora_exact(records(exact, LORA_EXACT)),
    ]
    return [{"programme": "p1", "evidence": "measured", "scale": scale} | row for row in rows]


def _gates(gates: Rows) -> dict:
    held = sum(gate["passed"] for gate in gates) / len(gates)
    skipped = [gate["gate"] for gate in gates if gate["status"] == "skipped"]
    return {
        "decision": "hard_gates",
        "subject": f"{len(gates)} gates",
        "value": held,
        "low": None,
        "high": None,
        "threshold": 1.0,
        "verdict": "measure" if held == 1.0 else "do not measure",
        "detail": "share of gates that hold"
        + (f"; skipped: {', '.join(skipped)}" if skipped else ""),
    }


def _prefill_share(share: Rows, threshold: float) -> list[dict]:
    rows = []
    for point in (row for row in share if row["status"] == "ok"):
        low, high = float(point["prefill_share_p10"]), float(point["prefill_share_p90"])
        if high < threshold:
            verdict = "low: argue by accumulation over rounds x candidates, sync and memory"
        elif low >= threshold:
            verdict = "high: argue by the prefill of a single rollout"
        else:
            verdict = "undecided: the threshold lies within the spread"
        rows.append(
            {
                "decision": "prefill_share",
                "subject": f"{point['context']}/{point['generation']} {point['mode']}",
                "value": float(point["prefill_share"]),
                "low": low,
                "high": high,
                "threshold": threshold,
                "verdict": verdict,
                "detail": f"share of prefill in one rollout, p10 to p90 of {point['n']} runs",
            }
        )
    return rows


def _prefix_savings(savings: Rows, threshold: float) -> list[dict]:
    half = [row for row in savings if abs(2 * row["prefix_tokens"] - row["prompt_tokens"]) <= 1]
    return [
        {
            "decision": "prefix_savings",
            "subject": f"half of {point['prompt_tokens']} tokens",
            "value": float(point["savings"]),
            "low": float(point["savings_low"]),
            "high": float(point["savings_high"]),
            "threshold": threshold,
            "verdict": _beside(
                point["savings_low"], point["savings_high"], threshold, "worth it", "falls short"
            ),
            "detail": "prefill time saved by reusing half of the prompt, 95 % interval over "
            f"{point['documents']} documents; operation count: "
            f"{point['expected_with_attention']:.3f}",
        }
        for point in half
    ]


def _engine_speed(speed: Rows, threshold: float) -> list[dict]:
    ratios = [row["ratio_to_transformers"] for row in speed if row["engine"] == "ember"]
    values = [ratio for ratio in ratios if ratio is not None]
    if not values:
        return []
    return [
        {
            "decision": "engine_speed",
            "subject": "decode against Transformers generate",
            "value": median(values),
            "low": min(values),
            "high": max(values),
            "threshold": threshold,
            "verdict": _beside(min(values), max(values), threshold, "reached", "falls short"),
            "detail": f"median ratio of tokens/s, least to greatest of {len(values)} paired runs",
        }
    ]


def _lora_alignment(alignment: Rows, thresholds: Mapping) -> list[dict]:
    """P1-3.4: float32 by the difference, half precision by the error against PEFT's own."""
    rows = []
    single = [row for row in alignment if row["dtype"] == "float32"]
    for reference in dict.fromkeys(row["reference"] for row in single):
        found = [row["delta_max_abs_diff"] for row in single if row["reference"] == reference]
        threshold = thresholds["max_lora_difference"]
        rows.append(
            {
                "decision": "lora_alignment",
                "subject": f"float32 against {reference}",
                "value": max(found),
                "low": None,
                "high": None,
                "threshold": threshold,
                "verdict": "aligned" if max(found) < threshold else "not aligned",
                "detail": "largest delta_max_abs_diff of logits over adapters, projections and "
                "paths",
            }
        )
    for dtype in dict.fromkeys(row["dtype"] for row in alignment if row["dtype"] != "float32"):
        threshold = thresholds["max_lora_error_ratio"]
        for path in dict.fromkeys(row["path"] for row in alignment):
            group = [
                row
                for row in alignment
                if (row["dtype"], row["path"], row["reference"]) == (dtype, path, "peft_forward")
            ]
            if not group:
                continue
            worst = max(group, key=lambda row: row["error_ratio"])
            rows.append(
                {
                    "decision": "lora_alignment",
                    "subject": f"{dtype}, {path}",
                    "value": worst["error_ratio"],
                    "low": worst["error_ratio_low"],
                    "high": worst["error_ratio_high"],
                    "threshold": threshold,
                    "verdict": _beside(
                        worst["error_ratio_low"],
                        worst["error_ratio_high"],
                        threshold,
                        "larger than PEFT's own error",
                        "smaller than PEFT's own error",
                    ),
                    "detail": "error to PEFT's float32 forward over that of PEFT's own forward in "
                    f"{dtype}; the worst adapter ({worst['adapter']}), 95 % interval over prompts",
                }
            )
    return rows


def _lora_weights(weights: Rows, thresholds: Mapping) -> list[dict]:
    rows = []
    for dtype in dict.fromkeys(row["dtype"] for row in weights):
        found = [row["error_max_ulp"] for row in weights if row["dtype"] == dtype]
        name = "max_lora_ulp_float32" if dtype == "float32" else "max_lora_ulp"
        rows.append(
            {
                "decision": "lora_weights",
                "subject": dtype,
                "value": max(found),
                "low": None,
                "high": None,
                "threshold": thresholds[name],
                "verdict": "as computed" if max(found) <= thresholds[name] else "not as computed",
                "detail": "largest error of W_after - W_before against s·B·A, in units in the "
                f"last place, of {len(found)} matrices, whole and by two stages",
            }
        )
    return rows


def _lora_latency(latency: Rows, threshold: float) -> list[dict]:
    rows = []
    for row in latency:
        if (row["implementation"], row["phase"]) != ("ember", "steady"):
            continue
        if row["operation"] not in ("apply", "replace"):
            continue
        scale = row["ratio_to_limit"] / row["ms_median"]
        low, high = row["ms_p10"] * scale, row["ms_p90"] * scale
        rows.append(
            {
                "decision": "lora_latency",
                "subject": f"{row['operation']}, base kept: {row['keep']}",
                "value": row["ratio_to_limit"],
                "low": low,
                "high": high,
                "threshold": threshold,
                "verdict": _beside(low, high, threshold, "falls short", "near the limit"),
                "detail": f"{row['ms_median']:.3g} ms over {row['limit_ms']:.3g} ms, the adapted "
                f"weights at the copy bandwidth; p10 to p90 of {row['n']} runs",
            }
        )
    return rows


def _lora_exact(exact: Rows) -> list[dict]:
    return [
        {
            "decision": "lora_exact",
            "subject": f"{row['implementation']}, base kept: {row['keep']}",
            "value": row["max_abs_diff"],
            "low": None,
            "high": None,
            "threshold": 0.0,
            "verdict": "exact" if row["exact"] else "drifts",
            "detail": f"largest difference of a weight after {row['swaps']} replacements and a "
            f"rollback; the copy of the base takes {row['kept_bytes'] / row['model_bytes']:.1%} "
            "of the model's memory",
        }
        for row in exact
    ]


def _beside(low: float, high: float, threshold: float, above: str, below: str) -> str:
    if low >= threshold:
        return above
    return below if high < threshold else "undecided: the threshold lies within the interval"
