"""The style sheet of a report: light and dark by the reader's preference, and readable on a phone."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1d2530; --soft: #4a5565; --line: #e2e6ec;
  --link: #1f5fbf; --good: #0b6b3a; --good-back: #e3f4ea; --bad: #a3231b; --bad-back: #fbe9e7; --warn: #7a4d00;
  --warn-back: #fdf1d8; --even: #4a5565; --even-back: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b2129; --ink: #e4e8ee; --soft: #a9b4c2;
  --line: #333c48; --link: #7fb2ff; --good: #7ddba5; --good-back: #17382a; --bad: #ff9b91; --bad-back: #43201d;
  --warn: #f0c674; --warn-back: #3d3117; --even: #b6c0cd; --even-back: #2a323d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: clamp(10px, 3vw, 24px); }
h1 { font-size: clamp(20px, 4vw, 28px); margin: 12px 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 4px; }
.facts { margin: 0 0 12px; padding-left: 20px; color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
nav { margin-bottom: 20px; font-size: 14px; } a { color: var(--link); text-decoration: none; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin-bottom: 18px;
  padding: clamp(12px, 3vw, 18px) clamp(12px, 3vw, 22px); }
section p { margin: 0 0 14px; color: var(--soft); max-width: 80ch; overflow-wrap: anywhere; }
.verdicts { list-style: none; margin: 10px 0 0; padding: 0; }
.verdicts li { border-top: 1px solid var(--line); padding: 8px 0; overflow-wrap: anywhere; }
.verdicts strong { margin-right: 6px; }
.word { display: inline-block; border-radius: 10px; padding: 0 9px; font-size: 14px; font-weight: 600;
  color: var(--even); background: var(--even-back); }
.word.better { color: var(--good); background: var(--good-back); }
.word.worse { color: var(--bad); background: var(--bad-back); }
.word.doubt { color: var(--warn); background: var(--warn-back); }
.tables { display: flex; flex-wrap: wrap; gap: 18px 40px; align-items: flex-start; }
.table { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 4px; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
tbody th { text-align: left; font-weight: 500; padding-left: 0; white-space: normal; min-width: 7em; }
thead th { color: var(--soft); font-weight: 600; }
thead td { border-bottom: 1px solid var(--line); }
td.best { font-weight: 700; color: var(--good); }
.pictures { display: grid; gap: 14px; margin-top: 14px; }
.c1 { grid-template-columns: minmax(0, 900px); } .c2 { grid-template-columns: repeat(2, minmax(0, 560px)); }
@media (max-width: 800px) { .c2 { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 500px) { th, td { padding: 4px 6px; } }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 3px; }
"""
