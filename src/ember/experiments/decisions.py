"""Go/no-go rules: tables and thresholds in, verdicts out (DESIGN "Decisions are data")."""

from collections.abc import Mapping, Sequence
from statistics import median

Rows = Sequence[Mapping]


def decide(
    gates: Rows,
    share: Rows,
    savings: Rows,
    speed: Rows,
    *,
    thresholds: Mapping,
    scale: str,
) -> list[dict]:
    """Rows of `DECISIONS` from the rows of P1's tables and the thresholds of `p1.decisions`."""
    rows = [
        _gates(gates),
        *_prefill_share(share, thresholds["low_prefill_share"]),
        *_prefix_savings(savings, thresholds["min_prefix_savings"]),
        *_engine_speed(speed, thresholds["min_engine_ratio"]),
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


def _beside(low: float, high: float, threshold: float, above: str, below: str) -> str:
    if low >= threshold:
        return above
    return below if high < threshold else "undecided: the threshold lies within the interval"
