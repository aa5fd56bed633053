// JavaScript's clients, each with a plain answer, a stream and a tool: node js_clients.mjs NAME URL
const [name, url] = process.argv.slice(2);
const MODEL = "demo", SAY = "please @shout banana split, peeled@", SHOUTED = "BANANA SPLIT, PEELED", CALL = 'please @call weather {"city": "Rome"}@';
const SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const WEATHER = `sunny ${6 * 7}`;
const weather = ({ city }) => `${WEATHER} in ${city}`;
const said = { plain: SHOUTED, stream: SHOUTED, tool: WEATHER };
const report = (what, text, passes) => console.log(JSON.stringify([what, passes && text.includes(said[what]) ? "yes" : "no", text.slice(0, 200)]));
const tell = (what, text) => report(what, String(text), true);
const tellStream = async (parts, text) => {
  const all = [];
  for await (const part of parts) all.push(text(part) ?? "");
  report("stream", all.join(""), all.filter(Boolean).length > 2); // in one piece it is none
};

const CLIENTS = {
  async openai_chat() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none" });
    const ask = (content, more = {}) => client.chat.completions.create({ model: MODEL, messages: [{ role: "user", content }], ...more });
    tell("plain", (await ask(SAY)).choices[0].message.content);
    await tellStream(await ask(SAY, { stream: true }), (part) => part.choices[0].delta.content);
    const tools = [{ type: "function", function: { name: "weather", parameters: SCHEMA, parse: JSON.parse, function: weather } }];
    const runner = client.chat.completions.runTools({ model: MODEL, messages: [{ role: "user", content: CALL }], tools });
    tell("tool", await runner.finalContent());
  },
  async openai_responses() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none" });
    tell("plain", (await client.responses.create({ model: MODEL, input: SAY })).output_text);
    await tellStream(client.responses.stream({ model: MODEL, input: SAY }), (one) => one.type === "response.output_text.delta" ? one.delta : "");
    const tools = [{ type: "function", name: "weather", parameters: SCHEMA, strict: true }];
    const first = await client.responses.create({ model: MODEL, input: CALL, tools });
    const call = first.output.at(-1);
    const input = [{ type: "function_call_output", call_id: call.call_id, output: weather(JSON.parse(call.arguments)) }];
    tell("tool", (await client.responses.create({ model: MODEL, input, tools, previous_response_id: first.id })).output_text);
  },
  async anthropic() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic({ baseURL: url, apiKey: "none" });
    const base = { model: MODEL, max_tokens: 999 };
    const user = (content) => [{ role: "user", content }];
    tell("plain", (await client.messages.create({ ...base, messages: user(SAY) })).content.at(-1).text);
    await tellStream(client.messages.stream({ ...base, messages: user(SAY) }), (one) => one.type === "content_block_delta" ? one.delta.text : "");
    const tools = [{ name: "weather", input_schema: SCHEMA }];
    const message = await client.messages.stream({ ...base, messages: user(CALL), tools }).finalMessage();
    const call = message.content.find((block) => block.type === "tool_use");
    const result = [{ type: "tool_result", tool_use_id: call.id, content: weather(call.input) }];
    const messages = [...user(CALL), { role: "assistant", content: message.content }, { role: "user", content: result }];
    tell("tool", (await client.messages.create({ ...base, messages, tools })).content.at(-1).text);
  },
  async ollama() {
    const { Ollama } = await import("ollama");
    const client = new Ollama({ host: url });
    const user = (content) => [{ role: "user", content }];
    tell("plain", (await client.chat({ model: MODEL, messages: user(SAY) })).message.content);
    await tellStream(await client.chat({ model: MODEL, messages: user(SAY), stream: true }), (part) => part.message.content);
    const tools = [{ type: "function", function: { name: "weather", description: "Weather.", parameters: SCHEMA } }];
    const { message } = await client.chat({ model: MODEL, messages: user(CALL), tools });
    const result = { role: "tool", tool_name: "weather", content: weather(message.tool_calls[0].function.arguments) };
    tell("tool", (await client.chat({ model: MODEL, messages: [...user(CALL), message, result], tools })).message.content);
  },
  async ai_sdk_openai() {
    const { createOpenAI } = await import("@ai-sdk/openai");
    await aiSdk(createOpenAI({ baseURL: url + "/v1", apiKey: "none" })(MODEL));
  },
  async ai_sdk_openai_compatible() {
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    await aiSdk(createOpenAICompatible({ name: "localoss", baseURL: url + "/v1" })(MODEL));
  },
  async ai_sdk_anthropic() {
    const { createAnthropic } = await import("@ai-sdk/anthropic");
    await aiSdk(createAnthropic({ baseURL: url + "/v1", apiKey: "none" })(MODEL));
  },
  async openai_agents_chat() {
    const { OpenAIChatCompletionsModel } = await import("@openai/agents");
    await agents((client) => new OpenAIChatCompletionsModel(client, MODEL));
  },
  async openai_agents_responses() {
    const { OpenAIResponsesModel } = await import("@openai/agents");
    await agents((client) => new OpenAIResponsesModel(client, MODEL));
  },
};

async function aiSdk(model) {
  const { generateText, streamText, tool, stepCountIs } = await import("ai");
  const { z } = await import("zod");
  tell("plain", (await generateText({ model, prompt: SAY })).text);
  await tellStream(streamText({ model, prompt: SAY }).textStream, (text) => text);
  const tools = { weather: tool({ description: "Weather.", inputSchema: z.object({ city: z.string() }), execute: async (given) => weather(given) }) };
  tell("tool", await streamText({ model, prompt: CALL, tools, stopWhen: stepCountIs(3) }).text);
}

async function agents(model) {
  const { Agent, run, tool, setTracingDisabled } = await import("@openai/agents");
  const { default: OpenAI } = await import("openai");
  const { z } = await import("zod");
  setTracingDisabled(true);
  const tools = [tool({ name: "weather", description: "Weather.", parameters: z.object({ city: z.string() }), execute: weather })];
  const agent = new Agent({ name: "Guide", model: model(new OpenAI({ baseURL: url + "/v1", apiKey: "none" })), tools });
  tell("plain", (await run(agent, SAY)).finalOutput);
  await tellStream((await run(agent, SAY, { stream: true })).toTextStream(), (text) => text);
  tell("tool", (await run(agent, CALL)).finalOutput);
}

await CLIENTS[name]();
