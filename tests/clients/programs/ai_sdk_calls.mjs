// What a program with the Vercel AI SDK does: `DIRECTORY URL KEY`, where DIRECTORY holds node_modules.
// Prints what came of it as one JSON object.

import { createRequire } from "node:module";

const [directory, url, key] = process.argv.slice(2);
const require = createRequire(`${directory}/`);
const { APICallError, embed, generateText, streamText } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");

const provider = (apiKey) => createOpenAICompatible({ name: "llmux", baseURL: `${url}/v1`, apiKey });
const llmux = provider(key);
const shared = { prompt: "hello", maxOutputTokens: 8, maxRetries: 0 };

async function say(model, from = llmux) {
  return (await generateText({ model: from(model), ...shared })).text;
}

async function raised(call) {
  try {
    await call();
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    return [error.statusCode, JSON.parse(error.responseBody).error.code];
  }
  return ["nothing was raised"];
}

async function streamed(model) {
  let text = "";
  for await (const piece of streamText({ model: llmux(model), ...shared }).textStream) text += piece;
  return text;
}

async function leftEarly(model) {
  const leaving = new AbortController();
  const stream = streamText({
    model: llmux(model), ...shared, maxOutputTokens: 500, abortSignal: leaving.signal, onError: () => {},
  });
  for await (const piece of stream.textStream) {
    leaving.abort();
    return piece.length > 0;
  }
  return false;
}

const inTurn = [];
const seen = { chat: await say("a"), stream: await streamed("a"), "left early": await leftEarly("a") };
for (const model of "abab") inTurn.push(await say(model));
seen["in turn"] = inTurn;
seen["at once"] = await Promise.all([..."abababab"].map((model) => say(model)));
seen.adapter = [await say("sql"), await streamed("sql")];
seen.embedding = (await embed({ model: llmux.textEmbeddingModel("a"), value: "hello", maxRetries: 0 })).embedding;
seen["unknown model"] = await raised(() => say("nobody"));
seen["wrong key"] = await raised(() => say("a", provider("wrong")));
console.log(JSON.stringify(seen));
