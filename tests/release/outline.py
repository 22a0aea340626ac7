"""What a browser finds in a page: its tags, its addresses and its scripts."""

import base64
import hashlib
import re
from html.parser import HTMLParser


class Outline(HTMLParser):
    """Every address a page refers to, its pictures' texts, its ids and scripts; refuses tags that do not close."""

    VOID = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.plots: list[str] = []
        self.references: set[str] = set()
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[key] or "" for key in ("src", "href", "action") if key in given]
        self.handlers += [key for key in given if key.startswith("on")]
        self.ids += [given["id"] or ""] if "id" in given else []
        for key, value in given.items():
            self.references |= {(value or "")[1:]} if key == "xlink:href" else set(re.findall(r"url\(#(.*?)\)", value or ""))
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        if tag == "svg":
            self.alts.append(given.get("aria-label") or "")
            self.plots += [tag] if given.get("class") == "plot" else []
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data

    def require_own_script(self) -> None:
        """The page has one script, and its content security policy allows that one by its hash and no other."""
        (script,) = self.scripts
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = re.findall(r'Content-Security-Policy" content="(.*?)"', self.page)
        assert policy == [f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
        assert self.handlers == []
