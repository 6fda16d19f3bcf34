"""The figures of a run as one SVG: a panel a figure, a bar a server."""

from html import escape

WIDTH, LEFT, RIGHT, ROW, GAP = 760, 130, 110, 20, 46
OURS, OTHERS = "#c2410c", "#94a3b8"


def svg(figures):
    """`figures`: as in the JSON report."""
    parts, y = [], 20
    for figure in figures:
        middle = figure["medians"]
        if not middle:
            continue
        better = "more is better" if figure["more_is_better"] else "less is better"
        heading = escape(f"{figure['key']}: {figure['title']} ({figure['unit']}; {better})")
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{heading}</text>')
        y += 8
        most = max(middle.values()) or 1
        for name, value in middle.items():
            length = max(1, (WIDTH - LEFT - RIGHT) * value / most)
            colour = OURS if name.startswith("roost") else OTHERS
            shown = f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
            ratio = f" ({value / middle['workerd']:.2f}×)" if middle.get("workerd") and name != "workerd" else ""
            parts.append(f'<text x="{LEFT - 6}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{ROW - 5}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + length + 5:.1f}" y="{y + 14}">{shown}{ratio}</text>')
            y += ROW
        y += GAP - ROW
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
