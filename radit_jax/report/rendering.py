"""Templates that escape every text, and a policy under which a page loads nothing."""

import functools
import re
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from radit_jax.report.sections import FORMATS
from radit_jax.text.content_policy import content_policy, only

_TEMPLATES = files("radit_jax.report") / "templates"
_SYMBOL = re.compile(r"\bp_(R|LSR)\b")
_INTERVAL = re.compile(r"\[[-−\d., ]+\]")


@functools.cache
def environment() -> jinja2.Environment:
    """The templates. A name that does not exist is an error, and every text is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("radit_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["formats"] = FORMATS
    templates.filters["quiet_ends"] = quiet_ends
    templates.filters["symbols"] = with_symbols
    return templates


def own_file(name: str) -> str:
    """The text of a style sheet or script of ours."""
    return (_TEMPLATES / name).read_text("utf-8")


def policy_for(script: str) -> str:
    """A content security policy: this script may run, nothing may be asked of any host."""
    return content_policy("style-src 'unsafe-inline'", only("script", script))


def quiet_ends(words: str) -> Markup:
    r"""Escaped words whose intervals, such as [68.7, 76.7], are in a quieter type.

    >>> quiet_ends("72.7 % [68.7, 76.7] <")
    Markup('72.7\xa0% <span class="quiet">[68.7, 76.7]</span> &lt;')
    """
    # A number and its sign stay on one line.
    escaped = str(escape(words)).replace(" %", "\u00a0%")
    return Markup(_INTERVAL.sub(r'<span class="quiet">\g<0></span>', escaped))


def with_symbols(words: str) -> Markup:
    """Escaped words in which p_R and p_LSR have their index below the line.

    >>> with_symbols("p_LSR < 1")
    Markup('p<sub>LSR</sub> &lt; 1')
    """
    escaped = str(escape(words))
    return Markup(_SYMBOL.sub(r"p<sub>\1</sub>", escaped))
