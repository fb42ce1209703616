"""Markdown in answers: what becomes of it, and that nothing in it can become anything else."""

import random
import re
from collections.abc import Iterator

import pytest
from selenium import webdriver

from lightvl.testing.server import ServerProcess
from tests.browser.chromium import Page

WRITE = """
const [texts, done] = arguments;
import("/static/markdown.js").then(({ writer }) => {
  done(texts.map((text) => {
    const container = document.createElement("div");
    writer(container)(text);
    return container.innerHTML;
  }));
});
"""
# Elements that have no attributes.
PLAIN = "p h3 h4 h5 h6 ul li blockquote hr code strong em del table thead tbody tr th td"
ALLOWED: dict[str, set[str]] = {
    **{name: set[str]() for name in PLAIN.split()},
    "a": {"href", "title", "target", "rel"},
    "div": {"class", "tabindex"},
    "ol": {"start"},
    "pre": {"tabindex"},
}
CHECK = """
const [texts, allowed, done] = arguments;
import("/static/markdown.js").then(({ writer }) => {
  const wrong = [];
  for (const text of texts) {
    const container = document.createElement("div");
    document.body.append(container); // where anything that can run would run
    const write = writer(container);
    for (let end = 0; end < text.length; end += 7) write(text.slice(0, end)); // as it streams
    write(text);
    const again = document.createElement("div");
    writer(again)(text);
    if (again.innerHTML !== container.innerHTML) wrong.push(["differs", text]);
    for (const element of container.querySelectorAll("*")) {
      const names = allowed[element.localName];
      const attributes = element.getAttributeNames();
      const isAllowed = names && attributes.every((name) => names.includes(name));
      if (!isAllowed) wrong.push([element.outerHTML, text]);
      if (element.localName !== "a") continue;
      const protocols = ["http:", "https:", "mailto:"];
      if (!protocols.includes(element.protocol)) wrong.push([element.href, text]);
      if (element.rel !== "noopener noreferrer nofollow") wrong.push([element.rel, text]);
    }
    container.remove();
  }
  done(wrong);
});
"""


@pytest.fixture(scope="module")
def server(driver: webdriver.Chrome) -> Iterator[ServerProcess]:
    """A server that echoes the prompt."""
    with ServerProcess("--model_name", "stub", "--media_workers", "1") as started:
        yield started


@pytest.fixture
def page(page: Page, server: ServerProcess) -> Iterator[Page]:
    """The page; the test fails, too, if anything was asked for elsewhere."""
    yield page
    hosts = {re.sub(r"^(?:blob:)?(https?://[^/]*).*", r"\1", url) for url in page.requested()}
    assert hosts <= {server.url}


def link(href: str, inner: str) -> str:
    rel = 'target="_blank" rel="noopener noreferrer nofollow"'
    return f'<a href="{href}" title="{href}" {rel}>{inner}</a>'


MADE = [
    ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    ("# Big *one*\n### small", "<h3>Big <em>one</em></h3><h5>small</h5>"),
    ("**bold** and *slanted*, ***both***", "<p><strong>bold</strong> and <em>slanted</em>, "
     "<strong><em>both</em></strong></p>"),
    ("__bold__ _slanted_ ~~gone~~",
     "<p><strong>bold</strong> <em>slanted</em> <del>gone</del></p>"),
    ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    ("snake_case_name 2 * 3 * 4 ** 5 **", "<p>snake_case_name 2 * 3 * 4 ** 5 **</p>"),
    ("**not closed", "<p>**not closed</p>"),
    (r"\*plain\* \`too\` \n", r"<p>*plain* `too` \n</p>"),
    ("`a < b` ``a ` b`` `open", "<p><code>a &lt; b</code> <code>a ` b</code> `open</p>"),
    ("```python\nif a < b:\n    **no**\n\n```\nafter",
     '<pre tabindex="0"><code>if a &lt; b:\n    **no**\n</code></pre><p>after</p>'),
    ("~~~\nstill being written", '<pre tabindex="0"><code>still being written</code></pre>'),
    ("- one\n- two\n  - inner\n- three",
     "<ul><li>one</li><li>two<ul><li>inner</li></ul></li><li>three</li></ul>"),
    ("3. three\n4. four\n\n   more", '<ol start="3"><li>three</li><li>four<p>more</p></li></ol>'),
    ("1. a\n   ```\n   code\n   ```\n2. b",
     '<ol><li>a<pre tabindex="0"><code>code</code></pre></li><li>b</li></ol>'),
    ("- a\n\nb", "<ul><li>a</li></ul><p>b</p>"),
    ("> quoted\n> **more**\n\nnot", "<blockquote><p>quoted\n<strong>more</strong></p></blockquote>"
     "<p>not</p>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("| a | b |\n|---|:-:|\n| 1 | *2* |\n| 3 |",
     '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
     "<tbody><tr><td>1</td><td><em>2</em></td></tr><tr><td>3</td><td></td></tr></tbody></table>"
     "</div>"),
    ("[here](https://example.com/a_(b)) or <https://example.com/>",
     f"<p>{link('https://example.com/a_(b)', 'here')} or "
     f"{link('https://example.com/', 'https://example.com/')}</p>"),
    ("[**b**](mailto:a@example.com)",
     f"<p>{link('mailto:a@example.com', '<strong>b</strong>')}</p>"),
    ("![a picture](https://example.com/p.png)",
     f"<p>{link('https://example.com/p.png', 'a picture')}</p>"),
    ("<b>text</b> &amp; <!-- this -->",
     "<p>&lt;b&gt;text&lt;/b&gt; &amp;amp; &lt;!-- this --&gt;</p>"),
    ("", ""),
]  # fmt: skip


def test_what_becomes_of_markdown(page: Page) -> None:
    texts = [text for text, _ in MADE]
    found = page.driver.execute_async_script(WRITE, texts)
    assert dict(zip(texts, found, strict=True)) == dict(MADE)


EVIL = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "[a](javascript:window.hacked=1)",
    "[a](JaVaScRiPt:window.hacked=1)",
    "[a](java\tscript:window.hacked=1)",
    "[a](java\nscript:window.hacked=1)",
    "[a](\x01javascript:window.hacked=1)",
    "[a](&#106;avascript:window.hacked=1)",
    "[a](data:text/html,<script>window.hacked=1</script>)",
    "[a](vbscript:x)", "[a](blob:x)", "[a](file:///etc/passwd)", "[a](//b.example)", "[a](/drain)",
    "<javascript:window.hacked=1>", "![a](javascript:window.hacked=1)",
    '[a](https://example.com/" onmouseover="window.hacked=1)',
    '[a](https://example.com "title" onclick=window.hacked=1)',
    '<https://example.com/"onmouseover=window.hacked=1>',
    '[" onmouseover="window.hacked=1](https://example.com)',
    "```html\n<script>window.hacked = 1</script>\n```",
    '```" onmouseover="window.hacked=1\na\n```',
    "`<img src=x onerror=window.hacked=1>`",
    "| <img src=x onerror=window.hacked=1> |\n|---|\n| <script>window.hacked=1</script> |",
    "![a](https://example.com/tracking.png)", "<style>@import 'https://example.com'</style>",
    "[a](https://example.com@evil.example/)", "[[a](https://b.example)](javascript:x)",
    "**[a](javascript:x)**", "# <iframe srcdoc='<script>1</script>'>", "\u202e[a](https://b.example)",
]  # fmt: skip
PIECES = [
    *EVIL,
    *("*", "**", "***", "_", "__", "~~", "`", "```", "~~~", "\n", "\n\n", " ", "    ", "> ", "- "),
    *(
        "1. ",
        "# ",
        "|",
        "---",
        "|-|",
        "[",
        "](",
        ")",
        "<",
        ">",
        "\\",
        "!",
        "a",
        "word ",
        "é🙂",
        "\0",
    ),
]


def test_nothing_in_an_answer_gets_out_of_it(page: Page) -> None:
    rng = random.Random(5)
    mixed = ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(400)]
    allowed = {name: sorted(names) for name, names in ALLOWED.items()}
    wrong = page.driver.execute_async_script(CHECK, [*EVIL, *mixed], allowed)
    assert wrong == []
    assert page.driver.execute_script("return window.hacked") is None


REPEATED = [
    *("*a ", "**a ", "_a ", "~~a ", "`", "``a`", "[", "[a](", "![", "> ", "- ", "  - ", "1. "),
    *("# ", "|", "| |\n", "<", "\\", "*", "-", " ", "\n", "> - ", "***a", "[a](https://b "),
]
TIME = """
const [pieces, done] = arguments;
import("/static/markdown.js").then(({ writer }) => {
  done(pieces.map((piece) => {
    const text = piece.repeat(20000 / piece.length);
    const began = performance.now();
    for (const all of [text, "| a |\\n" + text, "a" + text]) {
      writer(document.createElement("div"))(all);
    }
    return performance.now() - began;
  }));
});
"""


def test_no_text_takes_long(page: Page) -> None:
    took_ms = page.driver.execute_async_script(TIME, REPEATED)
    assert {piece: ms for piece, ms in zip(REPEATED, took_ms, strict=True) if ms > 2000} == {}


def test_an_answer_is_written_as_markdown(page: Page) -> None:
    page.find("#system").send_keys("**bold** `code` <i>text</i> [link](https://example.com)")
    page.ask("Hello")
    said = page.answered()
    assert said == "system\nbold code <i>text</i> link"
    assert page.texts(".turn.assistant .text strong") == ["bold"]
    assert page.texts(".turn.assistant .text code") == ["code"]
    assert page.all(".turn.assistant .text i") == []
    anchor = page.find(".turn.assistant .text a")
    assert anchor.get_dom_attribute("href") == "https://example.com/"
    assert page.violations() == []
