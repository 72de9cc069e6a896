"""What all commands share: the backend, friendly errors, tables."""

import functools
import importlib.util
import os
import sys
import tempfile
import warnings

import typer
from rich.console import Console
from rich.table import Table

BACKENDS = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch"}
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Settings:
    """Options that stand before the command."""

    debug = False


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def choose_backend(backend: str | None) -> None:
    """Sets Keras' backend; must come before anything that imports Keras."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}. Received: {backend}")
        os.environ["KERAS_BACKEND"] = backend
    elif "KERAS_BACKEND" not in os.environ and not os.path.exists(_keras_settings()):
        # Keras would take TensorFlow, whether it is there or not.
        available = [name for name, module in BACKENDS.items() if installed(module)]
        if not available:
            raise ImportError(
                "There is no backend: pip install jax, or tensorflow, or torch. "
                "`keras-ssl doctor` says what is missing."
            )
        preferred = [name for name in ("tensorflow", "torch", "jax") if name in available]
        os.environ["KERAS_BACKEND"] = preferred[0]
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen in BACKENDS and not installed(BACKENDS[chosen]):
        raise ImportError(
            f"The backend {chosen} is not installed: pip install {BACKENDS[chosen]}. Installed: "
            f"{', '.join(n for n, m in BACKENDS.items() if installed(m)) or 'none'}."
        )
    _import_quietly()


def _import_quietly() -> None:
    """Imports what logs while it is imported: TensorFlow writes lines that nothing else stops."""
    if "keras_hub" in sys.modules or Settings.debug:
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import keras_hub  # noqa: F401
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _keras_settings():
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return os.path.join(home, "keras.json")


def friendly(function):
    """A user's mistake gives one message and exit code 1; with --debug, the traceback."""

    @functools.wraps(function)
    def command(*args, **kwargs):
        warnings.showwarning = _show_warning
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            err.print("\nInterrupted.")
            raise typer.Exit(130) from None
        except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
            if Settings.debug:
                raise
            text = str(error) or type(error).__name__
            err.print("Error: ", end="", style="bold red")
            err.print(text, markup=False)
            raise typer.Exit(1) from None
        except Exception as error:
            if Settings.debug:
                raise
            err.print("Error: ", end="", style="bold red")
            err.print(f"{type(error).__name__}: {error}", markup=False)
            err.print("This looks like a fault of keras-ssl; --debug shows where it happened.")
            raise typer.Exit(1) from None

    return command


def _show_warning(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, UserWarning):
        err.print("Warning: ", end="", style="yellow")
        err.print(str(message), markup=False)


def say(line: str) -> None:
    """Prints a line of what is going on."""
    print(line, flush=True)


def short(path: str) -> str:
    """A path as it is seen from the current folder, if it lies below that."""
    return path.removeprefix(os.getcwd() + os.sep)


def settings_of(pairs: list[str]) -> dict:
    """`["temperature=0.2"]` as a dict; values are read as YAML does."""
    import yaml

    values = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"--set wants name=value. Received: {pair}")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"The value cannot be read. Received: --set {pair}") from error
    return values


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """Prints a table."""
    sheet = Table(title=title, title_justify="left")
    for column in columns:
        sheet.add_column(column, overflow="fold")
    for row in rows:
        sheet.add_row(*[str(cell) for cell in row])
    # Lines are folded to the terminal here, and not cut where there is none.
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, width=width).print(sheet, markup=False)
