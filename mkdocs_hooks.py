"""What the site's build changes in a page: links to the README's table of flags go to its page."""

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 (mkdocs' own)
    """Returns the page's text as the site has it."""
    return markdown.replace("](../README.md#flags)", "](flags.md)")
