"""How a model starts, beside `meta.init_stats` (statistics of the official initialiser's draw)."""

from collections.abc import Collection

import numpy as np

from conformance_handlers.framework import Case

# Standard errors within which two independent draws may differ. 6 of them: about one in 1e9.
SIGMAS = 6.0
# Arrays of fewer values than this have statistics that are not yet normal themselves.
FEW = 32


def check_initialisers(
    case: Case,
    fresh: dict[str, np.ndarray],
    skip: dict[str, str] | None = None,
    tables: Collection[str] | None = None,
    names: Collection[str] | None = None,
):
    """Compare a fresh model's arrays, by official name, with the file's statistics.

    Constants (standard deviation 0) must be equal. Random ones must agree in mean and standard
    deviation within the error of two finite draws, and a uniform one also in its limit. Both draws
    come from the same distribution, but not from the same generator, so nothing sharper can be
    asked of them.

    Args:
        skip: official name to the reason why its start differs by design.
        tables: official names of fixed tables, whose values the file holds; `None`: everything that
            gets no gradient.
        names: official names to compare; `None`: all.
    """
    stats = case.meta.get("init_stats") or {}
    for name, theirs in stats.items():
        if names is not None and name not in names:
            continue
        if skip and name in skip:
            case.check(f"start of {name}", True, f"not compared: {skip[name]}")
            continue
        if name not in fresh:
            case.check(f"start of {name}", False, "our model has no such parameter")
            continue
        ours = np.asarray(fresh[name], "float64")
        if list(ours.shape) != list(theirs["shape"]):
            case.check(f"start of {name}", False, f"shape {ours.shape}, not {theirs['shape']}")
            continue
        if not theirs.get("requires_grad", True) if tables is None else name in tables:
            # Fixed tables are not random: the file's parameter itself is the initial value.
            case.compare_values(f"start of {name}", ours, case.arrays[f"param/{name}"])
            continue
        problems = _differences(ours, theirs)
        case.check(
            f"start of {name}",
            not problems,
            "; ".join(problems) or f"mean {ours.mean():.1e}, std {ours.std():.3g}",
        )


def check_heads(
    case: Case,
    fresh: dict[str, np.ndarray],
    heads: Collection[str],
    teacher: tuple[str, str] | None = None,
    tables: Collection[str] = (),
):
    """Compare the start of what a method adds to an encoder that is the user's own.

    Args:
        fresh: as above.
        heads: beginnings of official names that are compared; the rest is the encoder.
        teacher: beginnings `(teacher's, student's)`: the teacher must start as a copy, as there.
        tables: as above.
    """
    names, copies = [], True
    for name in case.meta.get("init_stats") or {}:
        if teacher and name.startswith(teacher[0]):
            student = teacher[1] + name[len(teacher[0]) :]
            copies = copies and np.array_equal(fresh[name], fresh[student])
        elif name.startswith(tuple(heads)):
            names.append(name)
    if teacher:
        case.check("the teacher starts as a copy of the student", copies)
    check_initialisers(case, fresh, tables=tables, names=names)


def _mean_tolerance(count, ours, theirs):
    """How far the means of two draws may be apart, by their standard deviations."""
    if count >= FEW:
        return SIGMAS * theirs * np.sqrt(2 / count)
    # With a deviation from few values, the quotient is Student's t: its quantile for as rare a case
    # as SIGMAS of a normal, approximately.
    freedom = 2 * max(count - 1, 1)
    quantile = np.sqrt(freedom * np.expm1(SIGMAS**2 / freedom))
    pooled = np.sqrt((ours**2 + theirs**2) / freedom * count)
    return quantile * pooled * np.sqrt(2 / count)


def _differences(ours, theirs):
    mean, std = theirs["mean"], theirs["std"]
    # Some files do not say how far the values reach.
    limit = max(abs(theirs[end]) for end in ("min", "max")) if "max" in theirs else np.inf
    if std < 1e-12:
        wrong = np.abs(ours - mean).max()
        return [f"expected the constant {mean:g}, off by {wrong:.1e}"] if wrong > 1e-7 else []
    count, problems = ours.size, []
    tolerance = _mean_tolerance(count, ours.std(), std)
    if abs(ours.mean() - mean) > tolerance:
        problems.append(f"mean {ours.mean():.3g}, theirs {mean:.3g} (tolerance {tolerance:.1g})")
    # The standard error of a sample's standard deviation is at most std / sqrt(2 n), for a normal.
    relative = SIGMAS * np.sqrt(1 / count)
    differs = abs(ours.std() - std) > relative * std
    if count < FEW:  # the ratio of two deviations is far from normal then, its logarithm less so
        ratio = max(ours.std(), 1e-30) / std
        differs = count > 4 and abs(np.log(ratio)) > SIGMAS / np.sqrt(count - 1)
    if differs:
        problems.append(f"std {ours.std():.3g}, theirs {std:.3g} (tolerance {relative:.1%})")
    # A uniform distribution ends at sqrt(3) standard deviations; a large normal sample never does.
    if count >= 256 and limit < 1.8 * std:
        ours_limit = np.abs(ours).max()
        if abs(ours_limit - limit) > 0.1 * limit:
            problems.append(f"limit {ours_limit:.3g}, theirs {limit:.3g} (uniform)")
    return problems
