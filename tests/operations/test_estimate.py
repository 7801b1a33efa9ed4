"""The schedule against what no schedule can beat; the estimate's figures by hand."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.operations.estimate import (
    BadEstimate,
    Task,
    critical_path,
    duration,
    estimate_plan,
    format_estimate,
    lower_bound,
    makespan,
    profile_pools,
    schedule,
    size,
)
from ember.operations.history import HERE, History, Record
from ember.operations.plan import PlannedJob
from ember.records.provenance import source_root

MANY = {"cores": 4, "timing": 1, "gpu": 1}


@st.composite
def graphs(draw, most=6, needs=True):
    """Tasks that wait only for earlier ones, so without a cycle. Whole seconds: sums are exact."""
    tasks = []
    for place in range(draw(st.integers(1, most))):
        after = draw(st.frozensets(st.integers(0, place - 1))) if place else frozenset()
        held = {"cores": draw(st.integers(1, 6)) if needs else 1}
        if needs:
            held |= {"timing": draw(st.integers(0, 1)), "gpu": draw(st.integers(0, 1))}
        tasks.append(Task(float(draw(st.integers(0, 20))), after, held))
    return tasks


pools = st.fixed_dictionaries(
    {"cores": st.integers(1, 4)},
    optional={"timing": st.just(1), "gpu": st.integers(1, 2), "jobs": st.integers(1, 3)},
)


def held(task, pool, size):
    return min(task.needs.get(pool, 0), size)


@given(graphs(), pools)
def test_a_schedule_keeps_order_and_limits(tasks, limits):
    starts = schedule(tasks, limits)
    spans = [(start, start + task.seconds) for start, task in zip(starts, tasks, strict=True)]
    for task, (start, _) in zip(tasks, spans, strict=True):
        assert all(spans[before][1] <= start for before in task.after)
    for now, _ in spans:
        running = [t for t, (s, e) in zip(tasks, spans, strict=True) if s <= now < e]
        for pool, size_ in limits.items():
            assert sum(held(task, pool, size_) for task in running) <= size_


@given(graphs(), pools)
def test_a_schedule_lies_between_its_bounds(tasks, limits):
    wall = makespan(tasks, limits)
    work = sum(task.seconds * held(task, "cores", limits["cores"]) for task in tasks)
    assert wall >= critical_path(tasks)
    assert wall >= work / limits["cores"] * (1 - 1e-12)
    assert wall >= lower_bound(tasks, limits) * (1 - 1e-12)
    assert wall <= sum(task.seconds for task in tasks)
    assert makespan(tasks, {}) == critical_path(tasks)
    assert makespan(tasks, {"cores": 1}) == sum(task.seconds for task in tasks)


@given(graphs())
def test_timing_jobs_never_overlap(tasks):
    starts = schedule(tasks, MANY)
    timed = [
        (start, start + task.seconds)
        for start, task in zip(starts, tasks, strict=True)
        if task.needs["timing"] and task.seconds
    ]
    for (_, end), (start, _) in itertools.pairwise(sorted(timed)):
        assert end <= start


def longest_chain(tasks, place):
    """By recursion over everything before it."""
    return tasks[place].seconds + max(
        (longest_chain(tasks, before) for before in tasks[place].after), default=0.0
    )


@given(graphs())
def test_the_critical_path_is_the_longest_chain(tasks):
    assert critical_path(tasks) == max(longest_chain(tasks, n) for n in range(len(tasks)))


def best(tasks, cores):
    """The shortest list schedule over all orders: for tasks of one core that is the optimum."""
    found = math.inf
    for order in itertools.permutations(range(len(tasks))):
        place = {task: n for n, task in enumerate(order)}
        renamed = [
            Task(tasks[t].seconds, frozenset(place[b] for b in tasks[t].after), {"cores": 1})
            for t in order
        ]
        found = min(found, makespan(renamed, {"cores": cores}))
    return found


@given(graphs(most=5, needs=False), st.integers(1, 3))
def test_a_list_schedule_is_within_grahams_bound_of_the_best(tasks, cores):
    wall, optimum = makespan(tasks, {"cores": cores}), best(tasks, cores)
    assert lower_bound(tasks, {"cores": cores}) <= optimum * (1 + 1e-12)
    assert optimum <= wall <= (2 - 1 / cores) * optimum + 1e-9


def test_a_schedule_by_hand():
    # a and b share two cores, c waits for a, d takes both.
    tasks = [
        Task(3.0, needs={"cores": 1}),
        Task(5.0, needs={"cores": 1}),
        Task(1.0, frozenset([0]), {"cores": 1}),
        Task(2.0, frozenset([0]), {"cores": 2}),
    ]
    assert schedule(tasks, {"cores": 2}) == [0.0, 0.0, 3.0, 5.0]
    assert makespan(tasks, {"cores": 2}) == 7.0
    assert critical_path(tasks) == 5.0
    assert lower_bound(tasks, {"cores": 2}) == (3 + 5 + 1 + 4) / 2


def test_no_tasks_take_no_time():
    assert schedule([], MANY) == []
    assert makespan([], MANY) == critical_path([]) == lower_bound([], MANY) == 0.0


def test_tasks_that_wait_for_each_other_are_refused():
    with pytest.raises(BadEstimate, match="wait for each other"):
        schedule([Task(1.0, frozenset([1])), Task(1.0, frozenset([0]))], {"cores": 1})


# The estimate


def job(name, inputs=(), outputs=None, threads=1, rule=None, reason="", **resources):
    rule = rule or name
    wildcards = {"w": name.removeprefix(f"{rule}_")} if rule != name else {}
    return PlannedJob(
        number=0,
        rule=rule,
        wildcards=wildcards,
        inputs=tuple(inputs),
        outputs=tuple(outputs or [f"results/tiny/{name}.parquet"]),
        logs=(),
        benchmark=f"results/tiny/benchmarks/{name}.jsonl",
        threads=threads,
        resources={"mem_mb": 1000, "runtime": 30, "tmpdir": "/tmp"} | resources,
        reason=reason,
    )


def record(name, seconds, rule=None, **more):
    return Record(name, rule or name, seconds, **({"source": HERE, "own": True} | more))


PLAN = (
    job("corpus_a", rule="corpus"),
    job("corpus_b", rule="corpus"),
    job("train", ["results/tiny/corpus_a.parquet"], threads=2, gpu=1),
    job("sweep", ["results/tiny/train.parquet"], threads=2, gpu=1, timing=1),
)
POOLS = {"cores": 2, "timing": 1, "gpu": 1}


def test_the_figures_of_a_plan_by_hand(tmp_path):
    records = (
        record("corpus_a", 10.0, "corpus", max_rss_mb=100.0),
        record("corpus_b", 20.0, "corpus", max_rss_mb=300.0),
        record("train", 3600.0, max_rss_mb=350.0, output_bytes=7_000_000, machine="Toy"),
        record("sweep", 1800.0, output_bytes=1_000_000),
        record("train", 7200.0, source="cpu/workflow_jobs.csv", own=False),
    )
    found = estimate_plan(PLAN, History("tiny", records), POOLS, ("all",), "local", tmp_path)
    # The corpora side by side; training takes both cores and so waits for the slower one.
    assert found.wall_s == 20 + 3600 + 1800
    assert found.critical_path_s == 10 + 3600 + 1800
    assert found.lower_bound_s == (10 + 20 + 2 * (3600 + 1800)) / 2
    assert (found.wall_low_s, found.wall_high_s) == (found.wall_s, found.wall_s + 3600)
    assert found.gpu_hours == 1.5
    assert found.cpu_hours == pytest.approx((10 + 20 + 2 * 5400) / 3600)
    assert (found.write_bytes, found.unsized) == (8_000_000, ("corpus_a", "corpus_b"))
    assert (found.peak_rss_mb, found.largest_rss_mb) == (400.0, 350.0)
    assert found.largest_rss_job == "train"
    assert found.no_record == ()
    assert found.wall_with_limits_s == found.wall_s
    assert found.jobs == {"corpus": 2, "train": 1, "sweep": 1}
    text = format_estimate(found)
    assert "wall time      1 h 30 min  [1 h 30 min to 2 h 30 min]" in text
    assert "1 job by the last run here (Toy)" in text
    assert "3 jobs by the last run here (machine not recorded)" in text
    assert "1 job: smallest to largest of several records" in text
    assert "2 jobs of unknown size" in text


def test_jobs_without_a_record_count_nothing_and_are_named(tmp_path):
    history = History("tiny", (record("train", 100.0),))
    found = estimate_plan(PLAN, history, POOLS, ("all",), "local", tmp_path)
    assert found.wall_s == 100.0
    assert found.no_record == ("corpus_a", "corpus_b", "sweep")
    assert found.no_record_limit_s == 3 * 30 * 60
    assert found.wall_with_limits_s == 30 * 60 + 100 + 30 * 60
    text = format_estimate(found)
    assert "3 jobs without a record, in the figures only under 'with limits'" in text
    assert "interval: none" in text


def test_without_any_record_no_time_is_said(tmp_path):
    found = estimate_plan(PLAN, History("tiny"), POOLS, ("all",), "local", tmp_path)
    text = format_estimate(found)
    assert "wall time" not in text
    assert "GPU-hours" not in text
    assert len(found.no_record) == 4
    assert "with limits    1 h 30 min, with 4 jobs without a record" in text


def test_a_job_by_others_of_its_rule_is_named(tmp_path):
    history = History("tiny", (record("corpus_a", 10.0, "corpus"),))
    found = estimate_plan(PLAN[:2], history, POOLS, ("all",), "local", tmp_path)
    assert found.unscaled == ("corpus_b",)
    assert "by other jobs of the same rule, not scaled: corpus_b" in format_estimate(found)


def test_gpu_jobs_do_not_rest_on_cpu_records(tmp_path):
    history = History("tiny", (record("train", 10.0, gpu=False), record("corpus_a", 1.0)))
    found = estimate_plan(PLAN[:3], history, POOLS, ("all",), "local", tmp_path)
    assert found.no_record == ("corpus_b", "train")


def test_products_that_are_there_give_the_size_and_are_replaced(tmp_path):
    there = tmp_path / "results" / "tiny"
    (there / "train.parquet").mkdir(parents=True)
    (there / "train.parquet" / "weights").write_bytes(b"x" * 900)
    (there / "sweep.parquet").write_bytes(b"x" * 100)
    found = estimate_plan(PLAN[2:], History("tiny"), POOLS, ("all",), "local", tmp_path)
    assert (found.write_bytes, found.replace_bytes, found.unsized) == (1000, 1000, ())
    assert "1 kB to write; replaces 1 kB" in format_estimate(found)


def test_too_little_disk_is_warned_of(tmp_path):
    history = History("tiny", (record("train", 10.0, output_bytes=10**18),))
    found = estimate_plan(PLAN[2:3], history, POOLS, ("all",), "local", tmp_path)
    assert not found.enough_disk
    assert "warning: 1e+06 TB more disk is needed" in format_estimate(found)
    fits = estimate_plan(PLAN[3:], history, POOLS, ("all",), "local", tmp_path)
    assert "warning" not in format_estimate(fits)


def test_changed_settings_are_said(tmp_path):
    plan = [job("train", reason="Params have changed since last execution: before: 1 now: 2")]
    history = History("tiny", (record("train", 10.0),))
    found = estimate_plan(plan, history, POOLS, ("all",), "local", tmp_path)
    assert found.changed == ("train",)
    assert "settings or code changed since the record, at least of: train" in format_estimate(found)


def test_nothing_to_do(tmp_path):
    found = estimate_plan([], History(""), POOLS, ("p1_fig3",), "local", tmp_path)
    assert format_estimate(found).endswith(
        "Nothing to do: everything is there (--all estimates it anew)."
    )


def test_a_cluster_is_told_without_its_queue(tmp_path):
    history = History("tiny", (record("train", 10.0),))
    found = estimate_plan(PLAN, history, {"jobs": 50}, ("all",), "slurm", tmp_path)
    assert "queue" in format_estimate(found)


def test_notes_of_the_history_are_shown(tmp_path):
    found = estimate_plan(PLAN, History("tiny", (), ("x is cut",)), POOLS, folder=tmp_path)
    assert "note: x is cut" in format_estimate(found)


def test_the_estimate_is_plain_data(tmp_path):
    found = estimate_plan(PLAN, History("tiny"), POOLS, ("all",), "local", tmp_path)
    data = json.loads(json.dumps(found.as_dict()))
    assert data["jobs"] == {"corpus": 2, "train": 1, "sweep": 1}
    assert data["enough_disk"] is True


# Profiles


def test_the_profiles_of_this_workflow():
    root = source_root()
    local = profile_pools(root / "local" / "config.yaml")
    assert local["timing"] == local["gpu"] == 1
    assert local["cores"] >= 1
    assert "jobs" not in local
    assert profile_pools(root / "local" / "config.yaml", cores=3, jobs=2) == {
        "timing": 1,
        "gpu": 1,
        "cores": 3,
        "jobs": 2,
    }
    slurm = profile_pools(root / "slurm" / "config.yaml")
    assert slurm["jobs"] >= 1
    assert "cores" not in slurm
    assert profile_pools(root / "slurm" / "config.yaml", jobs=7)["jobs"] == 7


def test_resources_of_a_profile_may_be_a_mapping(tmp_path):
    (tmp_path / "config.yaml").write_text("cores: 4\nresources: {timing: 1, mem: 4GB}\n")
    assert profile_pools(tmp_path / "config.yaml") == {"timing": 1, "cores": 4}


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(BadEstimate, match="is no profile"):
        profile_pools(tmp_path / "gone" / "config.yaml")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s")),
        *((754.6, "12 min 35 s"), (3599.6, "1 h 0 min"), (12_000, "3 h 20 min")),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3 TB")],
)
def test_sizes(count, text):
    assert size(count) == text
