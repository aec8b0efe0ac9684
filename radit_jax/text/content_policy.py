"""The content security policy of our pages: what is not named in it, a browser neither loads nor runs."""

import base64
import hashlib


def content_policy(*directives: str) -> str:
    """A policy under which a page shows pictures that are in it, and does what `directives` allow."""
    common = ("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'")
    return "; ".join([*common, *directives])


def only(element: str, text: str) -> str:
    """The directive that allows one script or style, by its hash.

    >>> only("script", "")
    "script-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    digest = hashlib.sha256(text.encode()).digest()
    return f"{element}-src 'sha256-{base64.b64encode(digest).decode()}'"
