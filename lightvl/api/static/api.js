// Requests to the server that this page came from.

import { readEvents } from "./sse.js";
import { key } from "./settings.js";

/** An answer with an error's status; `status` is 0 when there was none. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached.");
  }
  if (answer.ok) return answer;
  let message = `The server answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // A proxy's page, perhaps: the status has to do.
  }
  throw new ApiError(message, answer.status);
}

export const getJson = async (path) => (await call(path)).json();
export const getText = async (path) => (await call(path)).text();

/**
 * Asks for an answer and yields its parts: {text}, {reason} and, at the end, {usage}.
 * @throws {ApiError} before the first part or instead of a later one.
 */
export async function* chat(messages, settings, signal) {
  const body = { messages, ...settings, stream: true, stream_options: { include_usage: true } };
  const answer = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let done = false;
  try {
    for await (const data of readEvents(answer.body)) {
      if (data === "[DONE]") {
        done = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message);
      const choice = event.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { reason: choice.finish_reason };
      if (event.usage) yield { usage: event.usage };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection was lost in the middle of the answer.");
  }
  if (!done) throw new ApiError("The answer broke off.");
}
