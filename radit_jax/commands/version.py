"""`radit version`: this package's version, and those of Python and of the packages that results depend on."""

import argparse
import importlib.metadata
import json
import platform

import radit_jax

# What changes figures by more than rounding, or breaks first.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "scann")


def parser() -> argparse.ArgumentParser:
    """The command line of `radit version`."""
    p = argparse.ArgumentParser(description="Print the versions of radit_jax and of what it runs on.")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=print_versions)
    return p


def print_versions(options: argparse.Namespace) -> None:
    """Print the versions."""
    found = versions()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, number in found.items():
        print(f"{name:18} {number or 'not installed'}")


def versions() -> dict[str, str | None]:
    """Versions by name, None for what is not installed. Nothing of it is imported."""
    found: dict[str, str | None] = {"radit_jax": radit_jax.__version__, "python": platform.python_version()}
    # By what pip recorded: to import jax takes a second.
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
