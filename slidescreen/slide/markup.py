"""XML and JSON of foreign files, parsed without trust: no entities, no document types, bounded size and depth."""

from __future__ import annotations

import json
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

MAX_TEXT: Final = 64 << 20
"""Bytes. The largest seen, of Philips with its label inside, has about 10 MiB."""
FORBIDDEN: Final = (b"<!DOCTYPE", b"<!ENTITY")


def parse_xml(text: str | bytes) -> Element:
    """The root element. Raises ValueError for what is no XML, defines entities or is larger than 64 MiB."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"XML of {len(text)} bytes")
    try:
        root: Element = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except (DefusedXmlException, ParseError, LookupError, UnicodeError) as error:
        raise ValueError(f"XML that is not to be trusted or not whole ({type(error).__name__}: {error})") from error
    return root


def local_name(element: Element) -> str:
    """The element's name without its namespace."""
    return str(element.tag).rsplit("}", 1)[-1]


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, also for one nested deeper than Python's stack allows."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"JSON of {len(text)} bytes")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("JSON that is no object")
    return content


def defines_entities(text: bytes) -> bool:
    """Whether XML in `text` (also as UTF-16) has a document type or entities: the way to read other files or to explode."""
    plain = text.replace(b"\0", b"").upper()
    return any(mark in plain for mark in FORBIDDEN)
