// Rotate queries and keys of qkv (T, (HEADS + 2 * KV_HEADS) * HEAD_DIM) in place, and write keys and values to
// the cache: (SLOTS, KV_HEADS, HEAD_DIM), position p in slot p % SLOTS. A workgroup per token.
const THREADS = 64u;
const HALF = HEAD_DIM / 2u;
const ROW = (HEADS + 2u * KV_HEADS) * HEAD_DIM;

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // (T, HALF): cosine and sine
@group(0) @binding(2) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(3) var<storage, read_write> values: array<Quad>;
@group(0) @binding(4) var<storage, read_write> key_scales: array<f32>;  // (SLOTS, KV_HEADS), where SCALED
@group(0) @binding(5) var<storage, read_write> value_scales: array<f32>;
@group(0) @binding(6) var<uniform> batch: Batch;
var<workgroup> factors: array<f32, 2u * KV_HEADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = id.x * ROW;
  let slot = (batch.position + id.x) % SLOTS;
  for (var i = thread; i < (HEADS + KV_HEADS) * HALF; i += THREADS) {
    let at = row + i / HALF * HEAD_DIM + i % HALF;
    let turn = angles[id.x * HALF + i % HALF];
    let a = qkv[at];
    let b = qkv[at + HALF];
    qkv[at] = a * turn.x - b * turn.y;
    qkv[at + HALF] = b * turn.x + a * turn.y;
  }
  storageBarrier();
  let stored = row + HEADS * HEAD_DIM;  // keys, then values
  if (SCALED) {
    for (var head = thread; head < 2u * KV_HEADS; head += THREADS) {
      var largest = 0.0;
      for (var i = 0u; i < HEAD_DIM; i++) {
        largest = max(largest, abs(qkv[stored + head * HEAD_DIM + i]));
      }
      factors[head] = select(0.0, 127.0 / largest, largest > 1e-30);
      if (head < KV_HEADS) {
        key_scales[slot * KV_HEADS + head] = largest / 127.0;
      } else {
        value_scales[slot * KV_HEADS + head - KV_HEADS] = largest / 127.0;
      }
    }
    workgroupBarrier();
  }
  for (var i = thread; i < 2u * KV_HEADS * HEAD_DIM / 4u; i += THREADS) {
    let at = stored + 4u * i;
    var v = vec4<f32>(qkv[at], qkv[at + 1u], qkv[at + 2u], qkv[at + 3u]);
    if (SCALED) {
      v *= factors[4u * i / HEAD_DIM];
    }
    let quads = KV_HEADS * HEAD_DIM / 4u;
    if (i < quads) {
      keys[slot * quads + i] = to_cache(v);
    } else {
      values[slot * quads + i - quads] = to_cache(v);
    }
  }
}
