// Server-sent events from a response that was fetched: EventSource sends no key along.

/** Yield the data of each event. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((candidate) => candidate.startsWith("data: "));
      if (line) yield line.slice(6);
    }
  }
}
