// llama.cpp by npm's node-llama-cpp, which brings a library for each instruction set: a peer of compare.py.
//
//   npm install --prefix peer node-llama-cpp
//   node benchmarks/peer_node.mjs --modules peer MODEL.gguf --prompt-tokens 512 --gen-tokens 64 --threads 2
//
// Prints one line of JSON: load_s, prefill_tokens_per_s, decode_tokens_per_s.
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const {values, positionals} = parseArgs({
    allowPositionals: true,
    options: {
        modules: {type: "string", default: "."},
        "prompt-tokens": {type: "string", default: "512"},
        "gen-tokens": {type: "string", default: "64"},
        threads: {type: "string", default: "2"},
    },
});
const [prompt, gen, threads] = ["prompt-tokens", "gen-tokens", "threads"].map((name) => Number(values[name]));
const index = join(resolve(values.modules), "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(index));

const seconds = () => performance.now() / 1000;
const began = seconds();
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: resolve(positionals[0])});
const context = await model.createContext({
    contextSize: prompt + gen + 64, batchSize: Math.min(prompt, 512), threads, flashAttention: true,
});
const sequence = context.getSequence();
const load = seconds() - began;

// Ordinary tokens, the same in each run; all but the last are read first.
const tokens = Array.from({length: prompt + 1}, (_, i) => (i * 7919) % 50000 + 100);
await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, 8));
await sequence.clearHistory();
const reading = seconds();
await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, prompt));
const prefill = prompt / (seconds() - reading);

const writing = seconds();
let count = 0;
for await (const _ of sequence.evaluate([tokens[prompt]], {temperature: 0, yieldEogToken: true})) {
    if (++count >= gen) break;
}
const decode = count / (seconds() - writing);
console.log(JSON.stringify({load_s: load, prefill_tokens_per_s: prefill, decode_tokens_per_s: decode}));
process.exit(0);
