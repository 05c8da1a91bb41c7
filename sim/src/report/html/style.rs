//! The page's style sheet: light, dark, phone and print, in one piece and from nowhere else.
//!
//! Colours are Okabe and Ito's, which people with colour blindness can tell apart; what matters most (failures, old pods)
//! has a pattern, too.

/// The style sheet.
pub const STYLE: &str = r#"
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1b1f24; --dim: #59636e; --line: #d1d9e0; --card: #f6f8fa;
  --ok: #0072b2; --late: #56b4e9; --bad: #d55e00; --none: #8c959f; --warn: #e69f00; --safe: #007a5a;
  --old0: #e69f00; --old1: #cc79a7; --old2: #b8860b; --old3: #8c564b; --new0: #0072b2; --new1: #009e73; --new2: #56b4e9; --new3: #4b5fa8;
  --h0: #eef4f8; --h1: #c9dfec; --h2: #9cc3dc; --h3: #f0c27b; --h4: #e3893f; --h5: #b8460e; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --dim: #9ba7b4; --line: #3d444d; --card: #161b22;
  --ok: #4aa3df; --late: #8fd0f5; --bad: #ff8a3d; --none: #767f89; --warn: #f0b429; --safe: #3ecf9f;
  --old0: #f0b429; --old1: #e39ac6; --old2: #c9a227; --old3: #b07c6e; --new0: #4aa3df; --new1: #2fbf8f; --new2: #8fd0f5; --new3: #8f9fe6;
  --h0: #15222c; --h1: #1d3a4d; --h2: #28607f; --h3: #8a6420; --h4: #b8601c; --h5: #e8702a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { margin: .4rem 0; } .lead { font-size: 1.15rem; font-weight: 600; } .dim, figcaption { color: var(--dim); font-size: .9rem; }
figure { margin: .6rem 0 1.2rem; } .wide { overflow-x: auto; } .wide svg { display: block; width: 100%; min-width: 40rem; height: auto; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; margin: .4rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; } th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; } td.num, th.num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; } dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
nav ul { padding-left: 1.2rem; margin: .4rem 0; } a { color: var(--ok); } details { margin: .5rem 0; } summary { cursor: pointer; color: var(--dim); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; margin: .3rem 0; padding: 0; list-style: none; } .key svg { width: 1.1rem; height: .9rem; vertical-align: -.1rem; margin-right: .35rem; }
.verdict-bad { color: var(--bad); } .verdict-ok { color: var(--safe); }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; fill: var(--fg); } svg text.dim { fill: var(--dim); } svg text.strong { font-weight: 600; } svg text.small { font-size: 11.5px; } svg text.mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px; }
svg.graph text { fill: #1c1f22; font-size: 12px; } svg text.on-dark { fill: #fff; } svg text.on-light { fill: #1b1f24; }
.axis { stroke: var(--dim); stroke-width: 1; fill: none; } .grid { stroke: var(--line); stroke-width: 1; fill: none; } .mark { stroke: var(--fg); stroke-width: 1; stroke-dasharray: 3 3; fill: none; }
.ok { fill: var(--ok); } .late { fill: var(--late); } .bad { fill: var(--bad); } .none { fill: var(--none); } .warn { fill: var(--warn); } .safe { fill: var(--safe); } .hatch { fill: url(#hatch); } .faint { fill: var(--card); stroke: var(--line); }
.made { stroke: var(--fg); stroke-width: 1.2; fill: none; } .band { fill: var(--dim); fill-opacity: .12; } .ci { stroke: var(--fg); stroke-width: 2; fill: none; } .dot { fill: var(--fg); }
.old0 { fill: var(--old0); } .old1 { fill: var(--old1); } .old2 { fill: var(--old2); } .old3 { fill: var(--old3); } .new0 { fill: var(--new0); } .new1 { fill: var(--new1); } .new2 { fill: var(--new2); } .new3 { fill: var(--new3); }
.h0 { fill: var(--h0); } .h1 { fill: var(--h1); } .h2 { fill: var(--h2); } .h3 { fill: var(--h3); } .h4 { fill: var(--h4); } .h5 { fill: var(--h5); }
.safe-edge { fill: none; stroke: var(--safe); stroke-width: 3; } .unsure-edge { fill: none; stroke: var(--fg); stroke-width: 1.5; stroke-dasharray: 4 3; }
.defs { position: absolute; width: 0; height: 0; }
.hint { display: none; color: var(--dim); font-size: .85rem; }
@media (max-width: 44rem) { main { padding: .7rem; } h1 { font-size: 1.3rem; } .hint { display: block; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } table.stack thead { position: absolute; left: -999rem; } table.stack tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; } table.stack td { display: block; border: 0; padding: .05rem 0; text-align: left; } table.stack td::before { content: attr(data-name) " "; color: var(--dim); } }
@media print { :root { color-scheme: light; --bg: #fff; --fg: #000; --dim: #444; --line: #bbb; --card: #fff; --ok: #0072b2; --late: #56b4e9; --bad: #d55e00; --none: #8c959f; --warn: #e69f00; --safe: #007a5a;
  --old0: #e69f00; --old1: #cc79a7; --old2: #b8860b; --old3: #8c564b; --new0: #0072b2; --new1: #009e73; --new2: #56b4e9; --new3: #4b5fa8; --h0: #eef4f8; --h1: #c9dfec; --h2: #9cc3dc; --h3: #f0c27b; --h4: #e3893f; --h5: #b8460e; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } figure, tr, pre { break-inside: avoid; } h2, h3 { break-after: avoid; } td.num, th.num { white-space: normal; } details.printed::details-content { content-visibility: visible; height: auto; display: block; } .wide { overflow: visible; } .wide svg { min-width: 0; } nav, .hint { display: none; } }
"#;

/// Patterns that all drawings share.
pub const PATTERNS: &str = "<svg class=\"defs\" aria-hidden=\"true\" focusable=\"false\"><defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path d=\"M0 0V6\" stroke=\"#fff\" stroke-opacity=\".55\" stroke-width=\"3\"/></pattern></defs></svg>\n";
