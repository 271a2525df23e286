"""The comparison as Markdown and as a plot."""

import datetime
import html
import os
import statistics

from . import llama_cpp, machine


def lines(saved, cells):
    """Rows that are measured: (label, llama.cpp, lima, unit, ratio, least, greatest, at least, aim, failed, note)."""
    for cell in cells:
        got = saved["cells"].get(cell.key, {})
        pairs = list(zip(got.get("llama.cpp", []), got.get("lima", [])))
        if not pairs:
            continue
        ratios = [ours / theirs for theirs, ours in pairs]
        theirs, ours = (statistics.median(side) for side in zip(*pairs))
        note = f"{len(pairs)} runs; {' '.join(got['flags'])}"
        yield cell.label, theirs, ours, "tok/s", ours / theirs, min(ratios), max(ratios), *cell.asked, 0, note
    for format, rows in saved.get("http", {}).items():
        asked = {"output tok/s": (2.0, 3.5), "TTFT p50, ms": (1.0, None), "TTFT p99, ms": (1.0, None)}
        failed = rows["chats"]["failed"]
        note = f"{saved['http_rounds']} rounds, {failed} requests failed"
        for r in rows["chats"]["ratios"]:
            if r["metric"] in asked:
                name, _, unit = r["metric"].rpartition(" ")
                label = f"HTTP, 16 chats: {name.rstrip(',')}, {format}"
                yield label, r["second"], r["first"], unit, r["better"], r["low"], r["high"], *asked[r["metric"]], failed, note
        turns = {r["metric"]: r for r in rows["turns"]["ratios"]}
        first, second = (turns.get(f"TTFT p50 of turn {n}, ms") for n in (1, 2))
        if first and second:
            failed = rows["turns"]["failed"]
            note = f"first turn's TTFT over the second's; {saved['http_rounds']} rounds, {failed} requests failed"
            ratio = first["first"] / second["first"]
            theirs = first["second"] / second["second"]
            yield f"second turn, 1,500 tokens before, {format}", theirs, ratio, "×", ratio, ratio, ratio, 10.0, None, failed, note


def times(x):
    return "" if x is None else f"{x:g} ×"


def markdown(saved, rows):
    facts = {
        "Date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": machine.cpu(),
        "Memory": machine.memory(),
        "System": machine.system(),
        "Load before, now": f"{saved['load_before']:.2f}, {os.getloadavg()[0]:.2f} (one minute)",
        "Threads": saved["settings"]["threads"],
        "Model": saved["settings"]["model"],
        "lima": f"{saved['settings']['lima']}, level {saved.get('level', 'unknown')}, {machine.rustc()}",
        "llama.cpp": llama_cpp.version(),
    }
    out = [f"- {key}: {value}" for key, value in facts.items()]
    out += ["", "Medians; how many times better lima is (least to greatest of a run), and what was asked.", ""]
    out += ["| | llama.cpp | lima | | ratio | at least | aim | met | runs; llama.cpp's flags |", "|---|--:|--:|---|--:|--:|--:|---|---|"]
    for label, theirs, ours, unit, ratio, low, high, least, aim, failed, note in rows:
        met = "" if least is None else "yes" if ratio >= least and not failed else "**no**"
        spread = "" if low == high else f" ({low:.2f}–{high:.2f})"
        out.append(
            f"| {label} | {theirs:.1f} | {ours:.1f} | {unit} | **{ratio:.2f}**{spread} | {times(least)} | {times(aim)} "
            f"| {met} | {note} |"
        )
    return "\n".join(out) + "\n"


STYLE = """
text { font: 13px system-ui, sans-serif; fill: #444 } .bar { fill: #4c78a8 } .asked { stroke: #e45756; stroke-width: 2 }
.one { stroke: #888; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .bar { fill: #6f9bd1 } }
"""


def svg(rows):
    """Bars of ratios; a red line where the least is that was asked, a dashed one where both are equal."""
    # The second turn's ratio is to the first turn, not to llama.cpp.
    rows = [row for row in rows if row[3] != "×"]
    left, width, step, top = 300, 460, 22, 34
    longest = max([1.0, *(max(ratio, least or 0) for _, _, _, _, ratio, _, _, least, *_ in rows)])
    x = lambda value: left + width * value / longest
    height = top + step * len(rows) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" role="img">',
        f"<title>lima beside llama.cpp</title><style>{STYLE}</style>",
        f'<text x="{left}" y="18">times faster than llama.cpp (red: asked for)</text>',
    ]
    for i, (label, _, _, _, ratio, _, _, least, *_) in enumerate(rows):
        y = top + step * i
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(label)}</text>')
        out.append(f'<rect class="bar" x="{left}" y="{y}" width="{x(ratio) - left:.1f}" height="{step - 5}" rx="2"/>')
        out.append(f'<text x="{x(max(ratio, least or 0)) + 6:.1f}" y="{y + 13}">{ratio:.2f}</text>')
        if least is not None:
            out.append(f'<line class="asked" x1="{x(least):.1f}" x2="{x(least):.1f}" y1="{y - 2}" y2="{y + step - 3}"/>')
    out.append(f'<line class="one" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{top - 6}" y2="{height - 8}"/></svg>')
    return "\n".join(out) + "\n"
