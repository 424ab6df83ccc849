"""The looks of the page."""

STYLE = """
:root { --ink: #221c26; --soft: #6d6673; --line: #e4e0e6; --paper: #fbfafb;
  --ok: #2c7a4b; --bad: #b3261e; --noise: #a79fae; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0 0 6px; font-size: 34px; letter-spacing: -0.02em; line-height: 1.15; }
h2 { margin: 0; font-size: 18px; }
p { margin: 0; }
header { padding: 24px 28px; border-radius: 12px; background: #fff; border: 1px solid var(--line);
  border-left: 8px solid var(--ok); }
header.bad { border-left-color: var(--bad); }
header.ok h1 { color: var(--ok); }
header.bad h1 { color: var(--bad); }
.subject { color: var(--soft); font-size: 13px; letter-spacing: 0.04em; }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 8px; }
header code { font: 600 0.95em ui-monospace, "DejaVu Sans Mono", monospace; }
.hint { margin-top: 10px; padding: 8px 14px; border-radius: 8px; background: #fdf3e7;
  font-weight: 600; }
.levels { margin-top: 14px; }
.levels li { padding: 1px 12px; border-radius: 99px; font-size: 13px; border: 1px solid; }
.levels .ok { color: var(--ok); }
.levels .bad { color: var(--bad); }
.figures { margin: 16px 0 0; gap: 12px; }
.figures li { flex: 1 1 150px; background: #fff; border: 1px solid var(--line);
  border-radius: 12px; padding: 14px 16px; }
.figures strong { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.figures span { display: block; font-size: 13px; }
.figures small { color: var(--soft); font-size: 12px; }
section { margin-top: 36px; }
.caption { color: var(--soft); font-size: 13px; margin: 2px 0 12px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .value { font-size: 11px; font-variant-numeric: tabular-nums; pointer-events: none; }
svg .light { fill: #fff; }
svg .first { stroke: var(--ink); stroke-width: 2.5; fill: #fff; }
svg g:hover .cell { stroke: var(--ink); stroke-width: 1.2; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 1.6; }
svg .error { stroke: var(--ink); }
svg .threshold { stroke: var(--bad); stroke-dasharray: 5 4; }
svg .own { stroke: #5b7fb4; }
svg .noise { stroke: var(--noise); }
svg .point { fill: var(--ink); }
svg .point.bad { fill: var(--bad); }
svg .stem { stroke: var(--soft); stroke-width: 3; fill: var(--soft); }
svg .stem.ok { stroke: var(--ok); fill: var(--ok); }
svg .stem.bad { stroke: var(--bad); fill: var(--bad); }
table { width: 100%; border-collapse: collapse; margin-top: 16px; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); font-size: 12px; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .left2 :is(th, td):nth-child(2),
.left3 :is(th, td):is(:nth-child(2), :nth-child(3)) { text-align: left; }
tr.bad td { color: var(--bad); }
td { overflow-wrap: anywhere; }
dl { margin: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr));
  gap: 10px 24px; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; font-size: 14px; }
"""
