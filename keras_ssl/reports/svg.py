"""Plots as SVG text, without a library: they are part of a page that must open anywhere."""

import html
import math

# Wong 2011, Nature Methods 8:441: told apart by colour-blind readers; then repeats lighter.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c564b",
    "#7f7f7f",
    "#bcbd22",
    "#6a3d9a",
)


def colour(index: int) -> str:
    """A colour for a class or a curve."""
    if index < len(COLOURS):
        return COLOURS[index]
    return f"hsl({(index * 137.5) % 360:.0f} 55% {40 + 15 * (index % 3)}%)"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within a range."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (step * factor) - count))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    title: str,
    series: dict[str, list[tuple[float, float]]],
    percent: bool = False,
    levels: dict[str, float] | None = None,
    width: int = 361,
    height: int = 220,
) -> str:
    """Curves over epochs.

    Args:
        title: heading.
        series: points `(epoch, value)` of each curve; values that are not finite are left out.
        percent: values are shares of 1.
        levels: horizontal lines to compare with.
        width, height: in pixels.

    Returns:
        An `<svg>` element.
    """
    series = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    series = {name: points for name, points in series.items() if points}
    levels = levels or {}
    every = [point for points in series.values() for point in points]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every] + list(levels.values())
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    margin = 0.08 * (y_high - y_low) or max(abs(y_high), 1e-9) * 0.1
    y_low, y_high = y_low - margin, y_high + margin
    left, right, top, bottom = 56, 12, 30, 30
    several = len(series) + len(levels) > 1
    if several:
        bottom += 18

    def place(x, y):
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            left + across * (width - left - right),
            height - bottom - up * (height - top - bottom),
        )

    def label(value):
        return f"{100 * value:.3g} %" if percent else f"{value:.4g}"

    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(title, quote=True)}">',
        f'<text class="title" x="{left}" y="18">{html.escape(title)}</text>',
    ]
    for y in ticks(y_low, y_high):
        _, v = place(x_low, y)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{v:.1f}" y2="{v:.1f}"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{v + 4:.1f}" text-anchor="end">{label(y)}</text>')
    for x in ticks(x_low, x_high, 6):
        if x == int(x):
            u, _ = place(x, y_low)
            parts.append(
                f'<text x="{u:.1f}" y="{height - bottom + 16}" text-anchor="middle">{int(x)}</text>'
            )
    legend, at = [], 12
    for index, (name, points) in enumerate(series.items()):
        path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (place(x, y) for x, y in points))
        parts.append(f'<polyline class="curve" stroke="{colour(index)}" points="{path}"/>')
        for x, y in points if len(points) <= 60 else points[-1:]:
            u, v = place(x, y)
            hint = html.escape(f"{name}, epoch {x:g}: {label(y)}")
            parts.append(
                f'<circle cx="{u:.1f}" cy="{v:.1f}" r="2.5" fill="{colour(index)}">'
                f"<title>{hint}</title></circle>"
            )
        legend.append((name, colour(index), ""))
    for index, (name, y) in enumerate(levels.items()):
        _, v = place(x_low, y)
        shade = ("#888", "#bbb")[index % 2]
        parts.append(
            f'<line stroke="{shade}" stroke-dasharray="5 4" x1="{left}" x2="{width - right}" '
            f'y1="{v:.1f}" y2="{v:.1f}"><title>{html.escape(name)}: {label(y)}</title></line>'
        )
        legend.append((name, shade, "5 4"))
    if several:
        for name, stroke, dashes in legend:
            parts.append(
                f'<line stroke="{stroke}" stroke-width="2" stroke-dasharray="{dashes}" x1="{at}" '
                f'x2="{at + 18}" y1="{height - 8}" y2="{height - 8}"/>'
                f'<text x="{at + 23}" y="{height - 4}">{html.escape(name)}</text>'
            )
            at += 34 + 6.2 * len(name)
    return "\n".join([*parts, "</svg>"])


def scatter(points, groups, width: int = 720) -> str:
    """Points in the plane, each with its number for the page's hover.

    Args:
        points: `(N, 2)`; both directions get the same scale.
        groups: `(N,)` whole numbers that give the colour.
        width: in pixels; the height follows from the points.

    Returns:
        An `<svg>` element of circles with `data-i`.
    """
    margin = 14
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    scale = (width - 2 * margin) / max(max(xs) - min(xs), (max(ys) - min(ys)) * 0.8, 1e-9)
    height = round((max(ys) - min(ys)) * scale) + 2 * margin
    parts = [
        f'<svg class="plot map" id="map" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="map of the embeddings">'
    ]
    for i, (x, y, group) in enumerate(zip(xs, ys, groups, strict=True)):
        u, v = margin + (x - min(xs)) * scale, margin + (max(ys) - y) * scale
        parts.append(
            f'<circle cx="{u:.1f}" cy="{v:.1f}" r="4" fill="{colour(int(group))}" data-i="{i}"/>'
        )
    return "\n".join([*parts, "</svg>"])
