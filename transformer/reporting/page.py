"""The style that the project's HTML pages share: colours for light and dark, and the frame of a self-contained page.

Pages are valid XML too, so that a test can parse them, and load nothing from elsewhere.
"""

from __future__ import annotations

from html import escape

# Blue, vermilion and green of Okabe and Ito (2008), a palette for colour-blind readers; lighter on a dark page.
COLOURS = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #20242a; --soft: #636b7a; --grid: #e8e9ec;
  --blue: #0072b2; --vermilion: #d55e00; --green: #009e73; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e4e6ea; --soft: #969eac;
  --grid: #2c3038; --blue: #56b4e9; --vermilion: #f09a4a; --green: #3fc79a; } }
"""
_FRAME = """
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 2rem; }
h1 { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 1rem; font-size: 1.1rem; }
header p, small, dt, figcaption { margin: 0; color: var(--soft); font-size: .8125rem; font-weight: 400; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.9rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
dd { margin: 0; line-height: 1.35; } dd b { display: block; font-size: 1.4rem; font-weight: 600; }
@media (max-width: 40rem) { body { padding: 1.25rem .75rem 3rem; }
  dl { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); } }
"""


def page(title: str, aside: str, body: str, style: str = "", script: str = "") -> str:
    """A complete HTML page.

    Args:
        title: of the page and its heading, plain text. aside: beside the heading, plain text.
        body: XHTML. style: CSS of the page. script: JavaScript, without "]]>".
    """
    # CDATA hides `<` and `&` of the script in XML; in HTML its marks are comments of the script.
    scripts = f"<script>//<![CDATA[\n{script}\n//]]></script>" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(title)}</title><style>{COLOURS}{_FRAME}{style}</style></head>
<body><header><h1>{escape(title)}</h1><p>{escape(aside)}</p></header>
{body}
{scripts}</body></html>
"""


def tiles(numbers: list[tuple[str, str, str]]) -> str:
    """A list of numbers at the top of a page. numbers: name, value and unit of each, as plain text."""
    shown = (tuple(map(escape, number)) for number in numbers)
    return "".join(
        f"<div><dt>{name}</dt><dd><b>{text}</b><small>{unit}</small></dd></div>" for name, text, unit in shown
    )
