"""The documentation as a site: `sphinx-build -W docs build/docs`.

Sphinx with MyST, as jax, flax and optax have it: pages stay plain Markdown that reads well on its own.
"""

import radit_jax

project = "radit_jax"
author = "the radit_jax developers"
version = release = radit_jax.__version__

# Markdown, with anchors for headings as GitHub makes them. Notebooks are shown as a test runs them.
extensions = ["myst_nb"]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "radit_jax"
html_copy_source = False
