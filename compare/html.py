"""A report as one self-contained HTML page: no network, light and dark, by mouse and by keyboard."""

import io
import json
import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.verdict import EPSILON64, FACTOR, Verdict

if TYPE_CHECKING:
    from compare.report import Divergence, Report

_SIGN = {Verdict.MATCH: "✓", Verdict.PRECISION: "≈", Verdict.MISMATCH: "✗"}

_STYLE = """
:root{color-scheme:light dark;--good:#1a7f4b;--fair:#8a5a00;--bad:#b3261e;--line:#8884;--dim:#666;--panel:#8881}
@media(prefers-color-scheme:dark){:root{--good:#5fd39a;--fair:#e0b050;--bad:#ff8a80;--dim:#aaa}.plot svg{filter:invert(.92) hue-rotate(180deg)}}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.match{color:var(--good)}.precision{color:var(--fair)}.mismatch{color:var(--bad)}
.panel{background:var(--panel);border-left:4px solid currentColor;padding:.6rem 1rem;margin:.6rem 0}
.panel>*{color:CanvasText;margin:.2rem 0}code,pre{font:.9em ui-monospace,monospace}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}td,th{padding:.15rem .7rem .15rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}tr{border-bottom:1px solid var(--line)}
.dim{color:var(--dim);font-size:.9rem}canvas{max-width:100%;border:1px solid var(--line);image-rendering:pixelated;display:block}
canvas:focus{outline:3px solid Highlight}.plot svg{max-width:100%;height:auto}
"""

_SCRIPT = """
const data=JSON.parse(document.getElementById('data').textContent),map=document.getElementById('map');
if(map&&data.rows.length){
const steps=data.rows[0].digits.length,rows=data.rows.length;
const w=Math.max(1,Math.min(24,Math.floor(960/steps))),h=Math.max(4,Math.min(14,Math.floor(900/rows)));
map.width=w*steps;map.height=h*rows;const c=map.getContext('2d');let row=data.first[0],step=data.first[1];
function colour(r,d){if(r.ratio[d]>data.factor)return r.decides?'#b3261e':'#d98b86';
const t=Math.max(0,Math.min(1,r.digits[d]/16));return `hsl(${20+130*t} 45% ${78-40*t}%)`}
function draw(){for(let i=0;i<rows;i++)for(let j=0;j<steps;j++){c.fillStyle=colour(data.rows[i],j);c.fillRect(j*w,i*h,w,h)}
c.strokeStyle='#000';c.lineWidth=2;c.strokeRect(step*w+1,row*h+1,Math.max(w-2,2),Math.max(h-2,2));
const r=data.rows[row];document.getElementById('chosen').textContent=
`${r.stage}: ${r.name}${r.jax===r.name?'':'  |  '+r.jax}, step ${step}: ${r.digits[step].toFixed(1)} digits agree in float64, `+
`difference ${r.e[step]}, which is ${r.ratio[step]<0.1?'less than 0.1':r.ratio[step].toPrecision(2)} times what rounding explains`}
map.addEventListener('click',e=>{const b=map.getBoundingClientRect();step=Math.min(steps-1,Math.floor((e.clientX-b.left)/b.width*steps));
row=Math.min(rows-1,Math.floor((e.clientY-b.top)/b.height*rows));draw()});
map.addEventListener('keydown',e=>{const k={ArrowDown:[1,0],ArrowUp:[-1,0],ArrowRight:[0,1],ArrowLeft:[0,-1],Home:[-rows,-steps],End:[rows,steps]}[e.key];
if(!k)return;e.preventDefault();row=Math.max(0,Math.min(rows-1,row+k[0]));step=Math.max(0,Math.min(steps-1,step+k[1]));draw()});
draw()}
"""


def to_html(report: "Report") -> str:
    """Give the page: first what matters, then pictures, then everything."""
    verdict = str(report.verdict)
    sign = _SIGN[report.verdict]
    parts = [
        f"<h1 class={verdict}>{sign} {escape(report.name)}: {verdict}</h1>",
        f"<p class=dim>{escape(report.torch.side)} against {escape(report.jax.side)}, {_counted(report)}</p>",
        *_found(report),
        *_losses(report),
        *_map(report),
        *_modules(report),
        *_table(
            "Not compared",
            ("side", "what", "why"),
            [(each.side, each.name, each.reason) for each in report.not_compared],
        ),
        *_table("To run it again", ("setting", "value"), [(k, _shown(v)) for k, v in report.settings.items()]),
    ]
    data = json.dumps(_data(report)).replace("</", "<\\/")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{sign} {escape(report.name)}: {verdict}</title><style>{_STYLE}</style></head><body><main>"
        f"{''.join(parts)}</main><script id=data type=application/json>{data}</script><script>{_SCRIPT}</script>"
        "</body></html>"
    )


def _counted(report: "Report") -> str:
    steps = max((len(quantity.error64) for quantity in report.quantities), default=0)
    return f"{len(report.quantities)} tensors over {steps} steps, each in float32 and in float64"


def _found(report: "Report") -> list[str]:
    found = []
    for line in report.nondeterministic:
        found.append(f"<div class='panel mismatch'><p>Nondeterministic: {escape(line)}</p></div>")
    if report.divergence:
        found.append(_divergence(report.divergence, "First divergence"))
    found += [_divergence(each, "And by itself") for each in report.others]
    for note in report.notes:
        found.append(
            f"<div class='panel precision'><p><b>{escape(note.name)}</b></p><p>{escape(note.explanation)}</p>"
            f"<p>{escape(note.fix)}</p></div>"
        )
    if not found:
        found.append("<p>Both sides are the same program: nothing differs by more than rounding.</p>")
    return found


def _divergence(divergence: "Divergence", title: str) -> str:
    names = escape(divergence.torch)
    if divergence.jax != divergence.torch:
        names += f"</code> &nbsp; <code>{escape(divergence.jax)}"
    rounding = divergence.error32 * 2.0**-29
    lines = [
        f"<p><b>{title}: step {divergence.step}, {escape(divergence.stage)}</b></p><p><code>{names}</code></p>",
        f"<p>float64 difference {divergence.error64:.1e}; rounding would be about {rounding:.0e}</p>",
        *(f"<p><code>{escape(line)}</code></p>" for line in (*divergence.details, divergence.opinion) if line),
    ]
    if divergence.cause:
        lines.append(f"<p><b>Cause</b> {escape(divergence.cause.explanation)}</p>")
        lines.append(f"<p><b>Fix</b> <code>{escape(divergence.cause.fix)}</code></p>")
        if divergence.cause.source.startswith("https://"):
            source = escape(divergence.cause.source.split(", ")[0])
            lines.append(f"<p class=dim><a href='{source}'>{source}</a></p>")
    return f"<div class='panel mismatch'>{''.join(lines)}</div>"


def _losses(report: "Report") -> list[str]:
    if not len(report.torch.losses32):
        return []
    from compare.plot import plot_reports

    file = io.StringIO()
    figure = plot_reports([report])
    figure.set_size_inches(8, 5)
    figure.savefig(file, format="svg", transparent=True)
    drawn = file.getvalue()
    worst = max(report.loss.error64)
    return [
        "<h2>Losses</h2>",
        f"<div class=plot role=img aria-label='Losses of both sides, and their differences; at most {worst:.1e} in float64'>",
        drawn[drawn.index("<svg") :],
        "</div>",
    ]


def _map(report: "Report") -> list[str]:
    return [
        "<h2>Digits of agreement</h2>",
        "<p class=dim>Tensors down, in order of computation; steps across. Green: digits that agree in float64. Red: more "
        "than rounding explains; pale red where it decides nothing by itself. Click, or use the arrow keys.</p>",
        "<canvas id=map tabindex=0 role=img aria-describedby=chosen aria-label='Map of agreement'></canvas>",
        "<p id=chosen aria-live=polite></p>",
    ]


def _modules(report: "Report") -> list[str]:
    rows = []
    for quantity in report.quantities:
        if quantity.stage in ("forward", "parameters", "buffers"):
            ratio = float(quantity.ratio.max())
            kind = "mismatch" if ratio > FACTOR else "match"
            word = "differs" if ratio > FACTOR else "agrees"
            rows.append(
                f"<tr><td>{quantity.stage}<td><code>{escape(quantity.torch)}</code><td><code>{escape(quantity.jax)}"
                f"</code><td class='n {kind}'>{max(quantity.error64):.1e}<td class={kind}>{word}"
            )
    if not rows:
        return []
    head = "<tr><th>stage<th>torch<th>JAX<th>float64 difference<th>"
    return [f"<h2>Side by side</h2><div class=scroll><table>{head}{''.join(rows)}</table></div>"]


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    head = "".join(f"<th>{heading}" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) for row in rows)
    return [f"<h2>{title}</h2><div class=scroll><table><tr>{head}{body}</table></div>"]


def _shown(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _data(report: "Report") -> dict[str, Any]:
    """What the map needs, as short as it can be."""
    rows = []
    first = [0, 0]
    for number, quantity in enumerate(report.quantities):
        errors = np.asarray(quantity.error64)
        digits = [round(-math.log10(max(e, EPSILON64)), 1) if math.isfinite(e) else 0 for e in errors]
        ratio = [float(f"{min(value, 1e300):.2g}") for value in quantity.ratio]
        divergence = report.divergence
        if divergence and quantity.stage == divergence.stage and max(ratio) > FACTOR and first == [0, 0]:
            first = [number, divergence.step]
        rows.append(
            {
                "stage": quantity.stage,
                "name": quantity.torch,
                "jax": quantity.jax,
                "decides": quantity.decides,
                "digits": digits,
                "ratio": ratio,
                "e": [f"{e:.0e}" for e in errors],
            }
        )
    return {"factor": FACTOR, "rows": rows, "first": first}
