"""The conformance runner's machinery: one file's bookkeeping, comparing, reporting.

How two arrays are compared
    error = ||ours - theirs|| / max(||theirs||, floor), Frobenius norms, computed in float64.
    The floor is zero for outputs and losses (an exactly zero reference is compared absolutely: the
    root mean square of ours must stay below the bound). For gradients, parameters after a step and
    optimizer slots it is TINY times the root mean square of all the reference's arrays of the same
    kind (for example of everything below `grad/`) times sqrt(size): a gradient a thousand times
    smaller than its neighbours (or exactly zero, as for a zero parameter) is the rounded sum of
    terms of the neighbours' size, so it has no relative accuracy of its own. The output marks such
    a key with `~`.
    Integers and booleans must be equal. NaN or infinity on either side is a miss.

Bounds in float32: BOUNDS below. A handler that needs more gives the reason with the bound, and it
    is printed under the key. One general reason is built in: `meta.fp64_maxabs` holds how far the
    reference's own float32 run was from its float64 run; a key above its bound passes only if no
    element is further than 4 times that, and the output says so.

What fails a file: a miss; a key that was neither compared nor read nor out of scope; an option in
    `config` that the handler did not read (an option unknown to it); a failed extra check; an
    exception in the handler; no handler.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import time
import traceback
from collections.abc import Callable, Iterable

import numpy as np

from conformance_handlers.scope import OUT_OF_SCOPE

BOUNDS = {"output": 1e-5, "gradient": 1e-4, "step": 1e-3}
TINY = 1e-3
REFERENCE_NOISE_FACTOR = 4.0

HANDLERS: dict[tuple[str, str], Callable] = {}


def handler(method: str, kind: str):
    """Register a function `f(case)` for the files of one (method, kind)."""

    def register(function):
        if (method, kind) in HANDLERS:
            raise ValueError(f"Two handlers for method {method!r}, kind {kind!r}.")
        HANDLERS[(method, kind)] = function
        return function

    return register


class UnknownOption(Exception):
    """An option, or a value of one, that a handler does not understand."""


class Options:
    """A dictionary of options that remembers which were read; the rest are unknown options."""

    def __init__(self, values: dict, path: str = "config"):
        self._path = path
        self._read: set[str] = set()
        self._values = {}
        for name, value in values.items():
            child = f"{path}.{name}"
            if isinstance(value, dict):
                value = Options(value, child)
            elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
                value = [Options(v, f"{child}[{i}]") for i, v in enumerate(value)]
            self._values[name] = value

    def __contains__(self, name) -> bool:
        return name in self._values

    def __getitem__(self, name):
        if name not in self._values:
            raise UnknownOption(f"{self._path}.{name} is needed and missing")
        self._read.add(name)
        return self._values[name]

    def get(self, name, default=None):
        return self[name] if name in self._values else default

    def names(self) -> list[str]:
        return list(self._values)

    def generator_only(self, *names):
        """Options that shaped how the arrays were made and that the arrays already show."""
        for name in names:
            if name in self._values:
                self._read.add(name)
                _read_all(self._values[name])

    def must_be(self, **expected):
        """Options that, if present, must have one of the given values (a tuple: any of them)."""
        for name, allowed in expected.items():
            if name not in self._values:
                continue
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            if self[name] not in allowed:
                raise UnknownOption(
                    f"{self._path}.{name} = {self[name]!r} is not understood "
                    f"(only {', '.join(map(repr, allowed))})"
                )

    def plain(self) -> dict:
        """Everything as plain values, all counted as read."""
        self._read.update(self._values)

        def strip(value):
            if isinstance(value, Options):
                return value.plain()
            if isinstance(value, list):
                return [strip(v) for v in value]
            return value

        return {name: strip(value) for name, value in self._values.items()}

    def unread(self) -> list[str]:
        names = []
        for name, value in self._values.items():
            if name not in self._read:
                names.append(f"{self._path}.{name}")
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Options):
                    names.extend(child.unread())
        return names


def _read_all(value):
    if isinstance(value, Options):
        value.plain()
    elif isinstance(value, list):
        for child in value:
            _read_all(child)


@dataclasses.dataclass
class Row:
    """One comparison, or one extra check (`key` starts with "check:")."""

    key: str
    error: float
    bound: float
    ok: bool
    note: str = ""
    absolute: bool = False

    @property
    def ratio(self) -> float:
        return self.error / self.bound if self.bound else (0.0 if self.ok else np.inf)


def as_numpy(value) -> np.ndarray:
    """A tensor of any backend, a Keras variable or a number, as a NumPy array."""
    if isinstance(value, (np.ndarray, np.generic, int, float, bool)):
        return np.asarray(value)
    import keras

    return np.asarray(keras.ops.convert_to_numpy(value))


def kind_of(key: str) -> str:
    """ "gradient", "step" or "output", from a key's name as VECTORS.md lays them out."""
    parts = key.split("/")
    if parts[0] == "grad":
        return "gradient"
    for part in parts[:-1]:
        match = re.fullmatch(r"step(\d+)", part)
        if match:
            # The loss of step k is that of k - 1 updates: the first one is a plain output.
            return "output" if parts[-1] == "loss" and match[1] == "1" else "step"
    return "step" if "momentum" in parts[:-1] else "output"


def group_of(key: str) -> str | None:
    """The prefix whose arrays share one scale (None: the key stands for itself)."""
    match = re.match(r"((?:.*/)?(?:grad|param|momentum)/)", key)
    return match[1] if match else None


class Case:
    """One reference file while a handler works through it."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray], meta: dict, folder=None):
        self.name = name
        self.folder = folder  # where the file lies, for those that have other files beside them
        self.meta = meta
        self.method = meta.get("method")
        self.config = Options(meta.get("config") or {})
        self.kind = self.config.get("kind")
        self.arrays = {key: value for key, value in arrays.items() if key != "meta"}
        self.rows: list[Row] = []
        self.read: set[str] = set()
        self.compared: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.problems: list[str] = []
        self._scales: dict[str, float] = {}

    # Reading -----------------------------------------------------------------------------------
    def input(self, key: str) -> np.ndarray:
        """An array that the handler feeds in; it counts as an input."""
        if key not in self.arrays:
            raise KeyError(f"the file has no array {key!r}")
        self.read.add(key)
        return self.arrays[key]

    def inputs(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays below a prefix, by the rest of their names; they count as inputs."""
        return {key[len(prefix) :]: self.input(key) for key in self.keys(prefix)}

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self.arrays if key.startswith(prefix)]

    # Comparing ---------------------------------------------------------------------------------
    def scale(self, group: str) -> float:
        """Root mean square of every reference array below `group`."""
        if group not in self._scales:
            arrays = [np.asarray(self.arrays[k], "float64").ravel() for k in self.keys(group)]
            values = np.concatenate(arrays) if arrays else np.zeros(1)
            self._scales[group] = float(np.sqrt(np.mean(values**2)))
        return self._scales[group]

    def compare(self, key: str, ours, bound: float | None = None, because: str = "", floor=None):
        """Compare one key of the file with our value.

        `bound` replaces the usual one and `floor` (a root mean square, times sqrt(size)) the usual
        floor of the denominator; either needs a reason in `because`, which is printed.
        """
        if key not in self.arrays:
            self.problems.append(f"the handler compares {key!r}, which the file does not have")
            return
        if (bound is not None or floor is not None) and not because:
            raise ValueError(f"A bound or a floor of its own for {key!r} needs a reason.")
        self.compared.add(key)
        self.compare_values(key, ours, self.arrays[key], bound, because, floor)

    def compare_values(self, label, ours, theirs, bound=None, because="", floor=None):
        """As `compare`, for a number derived from the file (not a key of it)."""
        bound = BOUNDS[kind_of(label)] if bound is None else bound
        theirs, ours = np.asarray(theirs), as_numpy(ours)
        if ours.shape != theirs.shape:
            note = f"shape {ours.shape}, expected {theirs.shape}"
            self.rows.append(Row(label, np.inf, bound, False, note))
            return
        if theirs.dtype.kind in "iub":
            wrong = int(np.sum(ours != theirs))
            note = f"{wrong} of {theirs.size} integers differ" if wrong else "integers: equal"
            self.rows.append(Row(label, wrong / max(1, theirs.size), 0.0, wrong == 0, note))
            return
        ours, theirs = ours.astype("float64"), theirs.astype("float64")
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            side = "ours" if np.isfinite(theirs).all() else "the reference"
            self.rows.append(Row(label, np.nan, bound, False, f"NaN or infinity in {side}"))
            return
        norm = np.linalg.norm(theirs.ravel())
        root_size = np.sqrt(max(1, theirs.size))
        own_floor = floor is not None
        if floor is None:
            group = group_of(label)
            floor = TINY * self.scale(group) if group else 0.0
        floor = floor * root_size
        absolute = norm == 0.0 or norm < floor
        denominator = max(norm, floor) or root_size
        error = float(np.linalg.norm((ours - theirs).ravel()) / denominator)
        ok, note = error <= bound, because
        if own_floor and not absolute:
            note = ""  # the floor did not apply, so neither does its reason
        noise = (self.meta.get("fp64_maxabs") or {}).get(label, 0.0)
        if not ok and noise and np.abs(ours - theirs).max() <= REFERENCE_NOISE_FACTOR * noise:
            ok = True
            note = f"{note}; " if note else ""
            note += f"the reference's own float32 run is {noise:.1e} off its float64 run here"
        self.rows.append(Row(label, error, bound, ok, note, bool(absolute)))

    def check(self, label: str, ok: bool, note: str = "", error: float = np.nan):
        """A check beside the file's keys; it fails the file like a key."""
        error = (0.0 if ok else np.inf) if np.isnan(error) else error
        self.rows.append(Row(f"check: {label}", error, 0.0, bool(ok), note))

    # Finishing ---------------------------------------------------------------------------------
    def finish(self):
        for key in self.arrays:
            if key in self.compared or key in self.read:
                continue
            reason = scope_reason(self.method, self.kind, key)
            if reason:
                self.skipped[key] = reason
            else:
                what = "input never used" if key.startswith("in/") else "key not compared"
                self.problems.append(f"{what}: {key}")
        for key in sorted(self.compared):
            if scope_reason(self.method, self.kind, key):
                self.problems.append(f"compared, yet listed as out of scope: {key}")
        for name in self.config.unread():
            self.problems.append(f"unknown option: {name}")

    @property
    def ok(self) -> bool:
        return not self.problems and all(row.ok for row in self.rows)


def scope_reason(method, kind, key) -> str | None:
    """Why a key (or "*", a whole file) is out of scope; None if it is not."""
    name = f"{method}/{kind}"
    for file_pattern, key_pattern, reason in OUT_OF_SCOPE:
        if not fnmatch.fnmatchcase(name, file_pattern):
            continue
        if key_pattern == "*" or (key != "*" and fnmatch.fnmatchcase(key, key_pattern)):
            return reason
    return None


def run_case(name: str, arrays: dict[str, np.ndarray], meta: dict, folder=None) -> Case:
    """Put one file's arrays through its handler."""
    case = Case(name, arrays, meta, folder)
    function = HANDLERS.get((case.method, case.kind))
    if function is None:
        reason = scope_reason(case.method, case.kind, "*")
        if reason:
            case.skipped = dict.fromkeys(case.arrays, reason)
        else:
            case.problems.append(
                f"unknown file: no handler for method {case.method!r}, kind {case.kind!r}"
            )
        return case
    try:
        function(case)
    except UnknownOption as error:
        case.problems.append(f"unknown option: {error}")
    except Exception as error:
        case.problems.append(f"the handler failed: {type(error).__name__}: {error}")
        case.problems.append(traceback.format_exc())
    case.finish()
    return case


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """A file's arrays and its meta. Nothing in the file is executed (`allow_pickle=False`)."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if "meta" not in arrays:
        raise ValueError("it holds no `meta`")
    meta = json.loads(str(arrays["meta"]))
    if not isinstance(meta, dict) or not isinstance(meta.get("config", {}), dict):
        raise ValueError("its `meta` is not a JSON object with an object `config`")
    return arrays, meta


def select(folder: pathlib.Path, only: str | None) -> list[pathlib.Path]:
    chosen = []
    for path in sorted(folder.rglob("*.npz")):
        name = path.relative_to(folder).as_posix()
        if only is None or only in name or any(fnmatch.fnmatch(n, only) for n in (name, path.name)):
            chosen.append(path)
    return chosen


def print_case(case: Case, seconds: float, verbose: bool, echo: Callable):
    echo(f"\n== {case.name}   method {case.method}, kind {case.kind}   {seconds:.1f} s")
    width = max([len(row.key) for row in case.rows], default=0)
    for row in case.rows:
        mark = "ok  " if row.ok else "MISS"
        if row.key.startswith("check: "):
            echo(f"  {mark} {row.key:<{width}}  {row.note}")
            continue
        tilde = "~" if row.absolute else " "
        echo(f"  {mark} {row.key:<{width}} {tilde}{row.error:9.2e}  bound {row.bound:.0e}")
        if row.note:
            echo(f"       {'':<{width}}  ({row.note})")
    if verbose:
        for key in sorted(case.read - case.compared):
            echo(f"  in   {key}")
        for key, reason in case.skipped.items():
            echo(f"  out  {key}: {reason}")
    reasons: dict[str, int] = {}
    for reason in case.skipped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    total = len(case.arrays)
    echo(
        f"  coverage: {total} keys = {len(case.compared)} compared"
        f" + {len(case.read - case.compared)} inputs + {len(case.skipped)} out of scope"
        f" + {total - len(case.compared | case.read | set(case.skipped))} uncovered"
    )
    for reason, count in reasons.items():
        echo(f"  out of scope, {count} keys: {reason}")
    for problem in case.problems:
        echo("  FAIL " + problem.replace("\n", "\n       "))


def print_table(cases: Iterable[Case], echo: Callable):
    cases = list(cases)
    width = max(len(case.name) for case in cases)
    head = f"{'file':<{width}}  {'result':<12} {'compared':>8} {'inputs':>6} {'out':>5}"
    echo(f"\n{head} {'worst error':>12} {'of bound':>9}  key")
    for case in cases:
        rows = [row for row in case.rows if not row.key.startswith("check: ")]
        # NaN sorts as the worst.
        worst = max(
            rows, key=lambda r: (not r.ok, np.inf if np.isnan(r.ratio) else r.ratio), default=None
        )
        if case.ok:
            result = "ok" if case.rows else "out of scope"
        else:
            result = "FAILED"
        tail = f"{worst.error:12.2e} {worst.ratio:9.3f}  {worst.key}" if worst else ""
        echo(
            f"{case.name:<{width}}  {result:<12} {len(case.compared):>8}"
            f" {len(case.read - case.compared):>6} {len(case.skipped):>5} {tail}"
        )


def run(vectors, only: str | None = None, verbose: bool = False, echo: Callable = print) -> int:
    """Run every selected file of a folder; 0 if all is well, else 1 (2: nothing to run)."""
    import keras

    folder = pathlib.Path(vectors)
    paths = select(folder, only) if folder.is_dir() else []
    if not paths:
        what = f"no .npz file that matches {only!r}" if folder.is_dir() else "no such folder"
        echo(f"Nothing to compare: {what}. Received: vectors={os.fspath(vectors)!r}")
        return 2
    # The bounds are those of float32: the reference's arithmetic, whatever the user's default.
    keras.config.set_dtype_policy("float32")
    echo(f"backend {keras.backend.backend()}, keras {keras.__version__}, {len(paths)} files")
    cases = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        start = time.perf_counter()
        try:
            arrays, meta = load(path)
        except Exception as error:
            case = Case(name, {}, {})
            case.problems.append(f"unreadable file: {type(error).__name__}: {error}")
        else:
            case = run_case(name, arrays, meta, path.parent)
        cases.append(case)
        print_case(case, time.perf_counter() - start, verbose, echo)
    print_table(cases, echo)
    failed = [case.name for case in cases if not case.ok]
    misses = sum(not row.ok for case in cases for row in case.rows)
    compared = sum(len(case.compared) for case in cases)
    skipped = sum(len(case.skipped) for case in cases)
    inputs = sum(len(case.read - case.compared) for case in cases)
    echo(
        f"\n{len(cases) - len(failed)} of {len(cases)} files without failure; {compared} keys"
        f" compared, {misses} misses, {inputs} inputs, {skipped} keys out of scope"
    )
    if failed:
        echo("FAILED: " + ", ".join(failed))
        return 1
    if not compared:
        echo("Nothing was compared: every selected file is out of scope.")
        return 2
    return 0
