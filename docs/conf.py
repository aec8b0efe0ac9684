"""The documentation as a site: `sphinx-build -W docs build/docs`.

Sphinx with MyST, as jax, flax and optax have it: pages stay plain Markdown that reads well on its own.
"""

import os
import unittest.mock
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import radit_jax
from radit_jax import cli

project = "radit_jax"
author = "the radit_jax developers"
version = release = radit_jax.__version__

# Markdown, with anchors for headings as GitHub makes them.
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "radit_jax"
html_copy_source = False


class Help(SphinxDirective):
    """What `radit COMMAND --help` prints, as it is in this version."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The help as a block of text, 80 columns wide."""
        text = help_of(self.arguments[0])
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def help_of(command: str) -> str:
    """The help of a command of `radit`."""
    # argparse takes its width from here.
    with unittest.mock.patch.dict(os.environ, COLUMNS="80"):
        parser = cli.parser(command)
        assert parser._subparsers is not None
        (commands,) = parser._subparsers._group_actions
        choices: Any = commands.choices
        return choices[command].format_help()


def setup(app: Any) -> dict[str, bool]:
    """Make `{help} COMMAND` known to Sphinx."""
    app.add_directive("help", Help)
    return {"parallel_read_safe": True}
