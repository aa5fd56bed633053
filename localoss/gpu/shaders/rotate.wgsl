// Rotate queries and keys of qkv (T, (HEADS + 2 * KV_HEADS) * HEAD_DIM) in place, and write keys and values to
// the cache: (SLOTS, KV_HEADS, HEAD_DIM), position p in slot p % SLOTS. A workgroup per head and token.
const HALF = HEAD_DIM / 2u;
const QUADS = HEAD_DIM / 4u;

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // (T, HALF): cosine and sine
@group(0) @binding(2) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(3) var<storage, read_write> values: array<Quad>;
@group(0) @binding(4) var<storage, read_write> key_scales: array<f32>;  // (SLOTS, KV_HEADS), where SCALED
@group(0) @binding(5) var<storage, read_write> value_scales: array<f32>;
@group(0) @binding(6) var<uniform> batch: Batch;
var<workgroup> head: array<f32, HEAD_DIM>;

fn largest() -> f32 {
  var size = 0.0;
  for (var i = 0u; i < HEAD_DIM; i++) {
    size = max(size, abs(head[i]));
  }
  return size;
}

@compute @workgroup_size(HALF)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = (id.y * (HEADS + 2u * KV_HEADS) + id.x) * HEAD_DIM;
  var a = qkv[row + thread];
  var b = qkv[row + thread + HALF];
  if (id.x < HEADS + KV_HEADS) {
    let turn = angles[id.y * HALF + thread];
    let c = a * turn.x - b * turn.y;
    b = b * turn.x + a * turn.y;
    a = c;
  }
  if (id.x < HEADS) {
    qkv[row + thread] = a;
    qkv[row + thread + HALF] = b;
    return;
  }
  head[thread] = a;
  head[thread + HALF] = b;
  workgroupBarrier();
  let is_value = id.x >= HEADS + KV_HEADS;
  let place = (batch.position + id.y) % SLOTS * KV_HEADS + (id.x - HEADS) % KV_HEADS;
  var factor = 1.0;
  if (SCALED) {
    let size = largest();
    factor = select(0.0, 127.0 / size, size > 1e-30);
    if (thread == 0u && is_value) {
      value_scales[place] = size / 127.0;
    } else if (thread == 0u) {
      key_scales[place] = size / 127.0;
    }
  }
  if (thread < QUADS) {
    let i = 4u * thread;
    let v = to_cache(factor * vec4<f32>(head[i], head[i + 1u], head[i + 2u], head[i + 3u]));
    if (is_value) {
      values[place * QUADS + thread] = v;
    } else {
      keys[place * QUADS + thread] = v;
    }
  }
}
