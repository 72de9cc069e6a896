"""For the API reference: examples as Keras' docstrings write them become code."""

import re

import griffe

_TITLE = re.compile(r"^Example:$", re.MULTILINE)
# A paragraph that starts with a prompt; its outputs have no blank line between.
_SESSION = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class KerasExamples(griffe.Extension):
    """Sessions (`>>>`) are fenced: bare, Markdown would show them as quotations."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            text = _SESSION.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = _TITLE.sub("**Example**", text)
