// Server-sent events out of a body's bytes, as the HTML standard parses them.

/** Yields the data of each event; an event that the stream's end cuts off is dropped. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const keep = rest.endsWith("\r") ? 1 : 0; // perhaps half of a line's end
      const lines = rest.slice(0, rest.length - keep).split(/\r\n|\n|\r/);
      rest = lines.pop() + rest.slice(rest.length - keep);
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
