"""Finding the application that the command line names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from .. import Durable
from .._errors import DurableError


def load_app(name: str) -> Durable:
    """Imports the application, with the current directory first on the path."""
    module_name, _, attributes = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise _import_failed(module_name, error) from error
        raise DurableError(
            f"there is no module {module_name!r}",
            detail=f"It was looked for in {os.getcwd()} and on the path of this Python.",
            hint="Run the command in the directory that holds the module, or set PYTHONPATH.",
        ) from error
    except Exception as error:
        raise _import_failed(module_name, error) from error
    found: object = module
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            known = [key for key, value in vars(module).items() if isinstance(value, Durable)]
            raise DurableError(
                f"the module {module_name!r} has no attribute {attributes!r}",
                hint=f"Did you mean {module_name}:{known[0]}?" if known else "It should hold an instance of Durable.",
            )
        found = getattr(found, attribute)
    if not isinstance(found, Durable):
        raise DurableError(f"{name} is of the type {type(found).__name__}, not Durable")
    return found


def _import_failed(module: str, error: Exception) -> DurableError:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    lines = traceback.format_list(frames) + traceback.format_exception_only(type(error), error)
    return DurableError(f"the module {module!r} failed while it was imported", detail="".join(lines))
