"""The templates of the pages, and the one script that may run on them.

A page holds values from bundles, file names and labels, which can come from anywhere. jinja2 escapes them, and the page's
content security policy lets a browser run nothing but the script in this package, named by its hash.
"""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parent


def render_template(name: str, **context: object) -> str:
    """The template `name` of this package with `context`; an unknown name in it raises."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template(name).render(context, script=Markup(script), script_hash=f"sha256-{digest}")
