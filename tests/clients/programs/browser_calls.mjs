// What a page in a real Chromium does: `DIRECTORY CHROMIUM PAGE URL KEY`, where DIRECTORY holds node_modules, PAGE is
// the page's address and so its origin, and KEY may be empty. Prints what came of it as one JSON object.

import { createRequire } from "node:module";

const [directory, executablePath, page, url, key] = process.argv.slice(2);
const { chromium } = createRequire(`${directory}/`)("playwright-core");
const args = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"];

const browser = await chromium.launch({
  executablePath, chromiumSandbox: false, args: [...args, "--disable-gpu", "--disable-sync"],
});
try {
  const tab = await browser.newPage();
  await tab.goto(page);
  const seen = await tab.evaluate(async ({ url, key }) => {
    const authorization = key ? { Authorization: `Bearer ${key}` } : {};
    const post = (body, more = {}) => fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization },
      body: JSON.stringify({ messages: [{ role: "user", content: "hello" }], max_tokens: 8, ...body }),
      ...more,
    });
    const attempt = async (call) => {
      try {
        return await call();
      } catch (error) {
        return error.name;
      }
    };
    const say = async (model) => (await (await post({ model })).json()).choices[0].message.content;
    const streamed = async (model) => {
      const text = await (await post({ model, stream: true })).text();
      return text.split("\n").filter((line) => line.startsWith("data: {")).map((line) => JSON.parse(line.slice(6)))
        .map((event) => event.choices[0].delta.content ?? "").join("");
    };
    const leftEarly = async (model) => {
      const leaving = new AbortController();
      const answer = await post({ model, stream: true, max_tokens: 500 }, { signal: leaving.signal });
      const first = await answer.body.getReader().read();
      leaving.abort();
      return first.value.length > 0;
    };
    const refused = async (answer) => [answer.status, (await answer.json()).error?.code ?? null];
    const inTurn = async () => {
      const said = [];
      for (const model of "abab") said.push(await say(model));
      return said;
    };
    const foreign = { Authorization: "Bearer wrong", "Content-Type": "application/json" };
    return {
      models: await attempt(async () =>
        (await (await fetch(`${url}/v1/models`, { headers: authorization })).json()).data.map((model) => model.id)),
      chat: await attempt(() => say("a")),
      stream: await attempt(() => streamed("a")),
      "left early": await attempt(() => leftEarly("a")),
      "in turn": await attempt(inTurn),
      "unknown model": await attempt(async () => refused(await post({ model: "nobody" }))),
      "wrong key": await attempt(async () => refused(await post({ model: "a" }, { headers: foreign }))),
      // A simple request needs no preflight: whatever its answer, the page cannot read it.
      "without a preflight": (await attempt(() => fetch(`${url}/v1/chat/completions`, {
        method: "POST", mode: "no-cors", headers: { "Content-Type": "text/plain" },
        body: JSON.stringify({ model: "b", messages: [{ role: "user", content: "hello" }] }),
      }))).type ?? "TypeError",
    };
  }, { url, key });
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}
