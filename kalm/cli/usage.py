"""Turn what the parser says about a mistyped command or YAML file into an error that names the nearest valid thing."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser
from omegaconf.errors import OmegaConfBaseException

from kalm.core.errors import KalmError

_CLASS_PROBLEM = re.compile(r"Problem with given class_path '([^']+)':\s*(.*?)\n(?:\s+- |\s*Given value|$)", re.DOTALL)
_REFUSED_PARAMETER = re.compile(r"Option '([^']+)' is not accepted")
_REFUSED_KEY = re.compile(r"(?:does not accept option|Option) '([^']+)'|unrecognized arguments: --([^\s=]+)")
_PARSER_KEY = re.compile(r'Parser key "([^"]+)"')


def usage_error(error: Exception, parser: ArgumentParser) -> KalmError:
    """The error to show for what jsonargparse or OmegaConf has raised; the verb's parser knows every valid key."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KalmError):  # the parser has wrapped it, for example a refused experiment name
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException | RecursionError):
        return KalmError(_interpolation_message(error, parser))
    message = str(error)
    problem = _CLASS_PROBLEM.search(message + "\n")
    if problem:
        return KalmError(_class_message(message, problem[1], problem[2]))
    refused = _REFUSED_KEY.search(message)
    if refused:
        key = refused[1] or refused[2]
        return KalmError(f"unknown key {key!r}; {_nearest(key, _known_keys(parser))} --help lists every key")
    return KalmError(message)


def _interpolation_message(error: Exception, parser: ArgumentParser) -> str:
    text = str(error).splitlines()[0] if str(error) else "it refers to itself"
    if isinstance(error, RecursionError) or "recursive" in text.lower() or "circular" in text.lower():
        text = "it refers to itself, directly or in a circle"
    key = getattr(error, "full_key", None)
    name = re.search(r"'\.*([\w.]+)' not found", text)
    hint = f"; {_nearest(name[1], _known_keys(parser))}" if name else "."
    where = f" in {key}" if key else ""
    return f"cannot resolve ${{...}}{where}: {text}{hint} ${{key}} names a key of the merged configuration"


def _class_message(message: str, class_path: str, problem: str) -> str:
    where = _PARSER_KEY.search(message)
    key = where[1] if where else "class_path"
    parameter = _REFUSED_PARAMETER.search(problem)
    if parameter:
        names = _parameters(class_path)
        return (
            f"{key}: {class_path} has no parameter {parameter[1]!r}; {_nearest(parameter[1], names)} It takes: "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    if not _is_importable(class_path):
        return f"{key}: class_path {class_path!r} does not exist; {_nearest(class_path, _class_paths_near(class_path))}"
    return f"{key}: {class_path}: {' '.join(problem.split())}"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # the last part may be right and the rest wrong
        close = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f"did you mean {close[0]!r}?" if close else "nothing that is valid comes near it."


def _known_keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions]


def _parameters(class_path: str) -> set[str]:
    """Parameters of a class, those of its parents included."""
    module, _, name = class_path.rpartition(".")
    names: set[str] = set()
    for parent in inspect.getmro(getattr(importlib.import_module(module), name)):
        if "__init__" in vars(parent) and parent is not object:
            parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names - {"self"}


def _is_importable(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, ValueError):
        return False


def _class_paths_near(class_path: str) -> list[str]:
    """Classes in the module that was meant, or in its neighbours when the module itself is misspelt."""
    module, _, _ = class_path.rpartition(".")
    try:
        modules = [importlib.import_module(module)]
    except (ImportError, ValueError):
        package = module.rpartition(".")[0]
        try:
            folder = importlib.import_module(package)
        except (ImportError, ValueError):
            return []
        names = [found.name for found in pkgutil.iter_modules(getattr(folder, "__path__", []))]
        close = difflib.get_close_matches(module.rpartition(".")[2], names, n=2, cutoff=0.4)
        modules = [importlib.import_module(f"{package}.{name}") for name in close]
    return [
        f"{found.__name__}.{name}"
        for found in modules
        for name, value in vars(found).items()
        if isinstance(value, type) and value.__module__ == found.__name__
    ]
