"""The table of a record of `benchmarks/accelerator.py`."""

from __future__ import annotations

import statistics
from typing import Any


def line(facts: dict[str, Any]) -> str:
    """A task's time as one line."""
    seconds = statistics.median(facts["seconds"])
    text = f"{1e3 * seconds:.4g} ms"
    if "images" in facts:
        text += f", {facts['images'] / seconds:.4g} images/s"
    return f"{text}, first run {facts['first_seconds']:.1f} s"


def is_wrong(record: dict[str, Any]) -> bool:
    """Whether anything was computed wrongly, or failed."""
    parts = [*record["right"].values(), record["resume"], *record["loop"].values()]
    parts += [entry["jgen"] for entry in record["fast"].values()]
    bad = any(part.get("wrong") or "failed" in part for part in parts)
    return bad or record["resume"].get("same_bits") is False


def best_peer(entry: dict[str, Any], task: str) -> tuple[str, dict[str, Any]] | None:
    """PyTorch's fastest variant of a task, and its record."""
    timed = {v: f["tasks"][task] for v, f in entry["torch"].items() if "seconds" in f["tasks"].get(task, {})}
    if not timed:
        return None
    return min(timed.items(), key=lambda item: statistics.median(item[1]["seconds"]))


HEAD = (
    "case",
    "task",
    "ms",
    "images/s",
    "TFLOP/s",
    "of peak",
    "first s",
    "GiB",
    "PyTorch ms",
    "variant",
    "ratio",
    "goal",
)


def rows_of(record: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, entry in record["fast"].items():
        if "failed" in entry["jgen"]:
            rows.append((name, "failed", *[""] * (len(HEAD) - 2)))
        for task, facts in entry["jgen"].get("tasks", {}).items():
            if "seconds" not in facts:
                continue
            seconds = statistics.median(facts["seconds"])
            rate = facts["flops"] / seconds / 1e12
            use = rate / record["peak_tflops"]["bfloat16" if entry["precision"] == "bfloat16" else "tf32"]
            memory = "" if facts["program_gib"] is None else f"{facts['program_gib']:.2f}"
            mine = (f"{1e3 * seconds:.4g}", f"{facts['images'] / seconds:.4g}", f"{rate:.4g}", f"{use:.1%}")
            mine += (f"{facts['first_seconds']:.1f}", memory)
            peer = best_peer(entry, task)
            theirs, ratio = ("", ""), None
            if peer is not None:
                ratio = seconds / statistics.median(peer[1]["seconds"])
                theirs = (f"{1e3 * statistics.median(peer[1]['seconds']):.4g}", peer[0])
            ratio_text = "" if ratio is None else f"{ratio:.2f}"
            rows.append((name, task, *mine, *theirs, ratio_text, goal_of(record, entry, task, ratio, use)))
    return rows


def goal_of(record: dict[str, Any], entry: dict[str, Any], task: str, ratio: float | None, use: float) -> str:
    """The goals, and whether they were reached; for accelerators only."""
    if record["backend"] == "cpu" or record["small"]:
        return ""
    goals = entry["goals"]
    parts = []
    if f"{task} ratio" in goals and ratio is not None:
        parts.append(f"<= {goals[f'{task} ratio']} {'yes' if ratio <= goals[f'{task} ratio'] else 'NO'}")
    if f"{task} use" in goals:
        parts.append(f">= {goals[f'{task} use']:.0%} {'yes' if use >= goals[f'{task} use'] else 'NO'}")
    return ", ".join(parts)


def table(record: dict[str, Any]) -> str:
    """The record in words: what is wrong, times, where they go, the loop."""
    peaks = record["peak_tflops"]
    lines = ["", f"{record['device']} ({record['backend']}), JAX {record['versions']['jax']}; measured peaks:"]
    lines[-1] += (
        f" bfloat16 {peaks['bfloat16']:.4g}, TF32 or float32 {peaks['tf32']:.4g}, float32 {peaks['float32']:.4g}"
    )
    lines[-1] += f" TFLOP/s, copies {record['copy_gb_per_second']:.4g} GB/s"
    lines += right_lines(record)
    rows = rows_of(record)
    if rows:
        widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
        lines += ["", *(" ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [HEAD, *rows])]
        lines += ["ms: of a training step or of all images of a sampler; TFLOP/s: of the formulas' matrix products;"]
        lines += ["of peak: over the measured peak of its type; GiB: of the program; ratio: jgen's time over PyTorch's"]
        notes = {entry["note"] for entry in record["fast"].values() if entry["note"]}
        lines += [f"note: {note}" for note in sorted(notes)]
    for name, entry in record["fast"].items():
        lines += [f"{name}: PyTorch {v} failed: {f['failed']}" for v, f in entry["torch"].items() if "failed" in f]
        lines += [f"{name}: PyTorch {v} {f['late']}" for v, f in entry["torch"].items() if "late" in f]
        if "failed" in entry["jgen"]:
            lines.append(f"{name}: jgen failed: {entry['jgen']['failed']}")
        if "late" in entry["jgen"]:
            lines.append(f"{name}: jgen {entry['jgen']['late']}: no time was left")
        if "plain_after" in entry["jgen"]:
            lines.append(f"{name}: jgen without cuDNN's kernels, after: {entry['jgen']['plain_after']}")
        if "trace" in entry:
            lines += ["", *trace_lines(name, entry["trace"])]
    if record["loop"]:
        lines.append("")
    for name, outcome in record["loop"].items():
        if "failed" in outcome:
            lines.append(f"loop {name}: failed: {outcome['failed']}")
        elif "late" in outcome:
            lines.append(f"loop {name}: {outcome['late']}: no time was left")
        else:
            ms = f"bare step {outcome['bare_ms']:.4g} ms, loop {outcome['loop_ms']:.4g} ms"
            lines.append(f"loop {name}: {ms}: {outcome['rate']:.1%} of the bare step's rate (goal: at least 95 %)")
    return "\n".join(lines)


def right_lines(record: dict[str, Any]) -> list[str]:
    lines = []
    for dtype in ("float32", "bfloat16"):
        cases = {name.split()[0]: out for name, out in record["right"].items() if name.endswith(f" {dtype}")}
        missing = {name: cases.pop(name)["missing"] for name in list(cases) if "missing" in cases[name]}
        lines += [f"passed over in {dtype}: {name}, as {package} is not installed" for name, package in missing.items()]
        if not cases:
            continue
        wrong = {name: out for name, out in cases.items() if out["wrong"]}
        computed = [out for out in cases.values() if "failed" not in out]
        most = {
            what: max((out[what] for out in computed), default=0.0) for what in ("loss", "gradient_norm", "gradient")
        }
        apart = ", ".join(f"{what.replace('_', ' ')} {value:.0e}" for what, value in most.items())
        twice = sum(out.get("same_bits_twice", False) for out in cases.values())
        lines.append(
            f"right in {dtype}: {len(cases) - len(wrong)} of {len(cases)} systems; largest differences: {apart};"
        )
        lines[-1] += f" the same bits in a second run: {twice} of {len(cases)}"
        lines += [f"  WRONG {name}: {'; '.join(out['wrong'])}" for name, out in wrong.items()]
    if record.get("not_reached"):
        lines.append(f"not reached: {', '.join(record['not_reached'])}")
    if "same_bits" in record["resume"]:
        same = record["resume"]["same_bits"]
        lines.append(f"a resumed training ends in {'the same bits' if same else 'OTHER BITS: WRONG'}")
    elif "failed" in record["resume"]:
        lines.append(f"resuming failed: {record['resume']['failed']}")
    elif "late" in record["resume"]:
        lines.append(f"resuming: {record['resume']['late']}: no time was left")
    return lines


def trace_lines(name: str, trace: dict[str, Any]) -> list[str]:
    """The three largest costs."""
    if "missing" in trace:
        return [f"largest costs of {name}: not available here: {trace['missing']}"]
    lines = [f"largest costs of {name} ({trace['busy']:.0%} of the time the device computes):"]
    lines += [f"  {cost['share']:6.1%} {cost['ms']:8.3f} ms  {cost['name']}" for cost in trace["costs"][:3]]
    return lines
