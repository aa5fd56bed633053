// Rotate queries and keys of qkv (T, (HEADS + 2 * KV_HEADS) * HEAD_DIM) in place, and write keys and values to
// the cache: (SLOTS, KV_HEADS, HEAD_DIM), position p in slot p % SLOTS. A workgroup per head and token.
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // (T, HALF): cosine and sine
@group(0) @binding(2) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(3) var<storage, read_write> values: array<Quad>;
@group(0) @binding(4) var<storage, read_write> extra: array<u32>;  // (SLOTS, KV_HEADS, EXTRA), where SCALED
@group(0) @binding(5) var<storage, read> bias: array<f32>;  // of a row of qkv
@group(0) @binding(6) var<storage, read> offsets: array<vec2<f32>>;  // (BLOCK + blocks, HALF): see attend.wgsl
@group(0) @binding(7) var<uniform> batch: Batch;
var<workgroup> head: array<f32, HEAD_DIM>;
var<workgroup> codes: array<u32, LOW_WORDS>;  // of the groups' scales
var<workgroup> low: array<u32, 4u * LOW_WORDS>;

fn largest(group: u32) -> f32 {
  var size = 0.0;
  for (var i = 16u * group; i < min(16u * group + 16u, HEAD_DIM); i++) {
    size = max(size, abs(head[i]));
  }
  return size;
}

// Bytes 4 * word to 4 * word + 3 of `codes` in one.
fn codes_word(word: u32) -> u32 {
  var all = 0u;
  for (var i = 0u; i < 4u; i++) {
    if (4u * word + i < LOW_WORDS) {
      all |= codes[4u * word + i] << (8u * i);
    }
  }
  return all;
}

@compute @workgroup_size(HALF)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let token = batch.first_row + id.y;
  let row = (token * (HEADS + 2u * KV_HEADS) + id.x) * HEAD_DIM;
  var a = qkv[row + thread];
  var b = qkv[row + thread + HALF];
  if (id.x < HEADS + KV_HEADS) {
    let turn = angles[token * HALF + thread];
    let c = a * turn.x - b * turn.y;
    b = b * turn.x + a * turn.y;
    a = c;
  }
  if (id.x < HEADS) {
    qkv[row + thread] = a;
    qkv[row + thread + HALF] = b;
    return;
  }
  let is_value = id.x >= HEADS + KV_HEADS;
  let steps = select(511.0, 127.0, is_value);
  if (SCALED && !is_value) {
    let at = id.x * HEAD_DIM + thread;
    let position = batch.position + id.y;
    let block = turned(vec2<f32>(bias[at], bias[at + HALF]), offsets[(BLOCK + position / BLOCK) * HALF + thread]);
    let its = turned(block, offsets[position % BLOCK * HALF + thread]);
    a -= its.x;
    b -= its.y;
  }
  head[thread] = a;
  head[thread + HALF] = b;
  workgroupBarrier();
  let place = (batch.position + id.y) % SLOTS * KV_HEADS + (id.x - HEADS) % KV_HEADS;
  if (SCALED) {
    if (thread < LOW_WORDS) {
      codes[thread] = scale_code(largest(thread) * select(1.0 / 511.0, 1.0 / 127.0, is_value));
    }
    if (thread < 4u * LOW_WORDS) {
      low[thread] = 0u;
    }
    workgroupBarrier();
  }
  if (thread < QUADS) {
    let i = 4u * thread;
    var v = vec4<f32>(head[i], head[i + 1u], head[i + 2u], head[i + 3u]);
    if (SCALED) {
      v = clamp(round(v * (1.0 / scale_of(codes[i / 16u]))), vec4<f32>(-steps), vec4<f32>(steps));
    }
    if (is_value) {
      values[place * QUADS + thread] = to_cache(v);
    } else if (SCALED) {
      let code = vec4<i32>(v);
      let below = vec4<u32>(code & vec4<i32>(3));
      low[thread] = below.x | (below.y << 2u) | (below.z << 4u) | (below.w << 6u);
      keys[place * QUADS + thread] = key_to_cache(code);
    } else {
      keys[place * QUADS + thread] = to_cache(v);
    }
  }
  if (SCALED) {
    workgroupBarrier();
    if (thread < SCALE_WORDS) {
      let first = place * EXTRA + select(KEY_SCALES, VALUE_SCALES, is_value);
      extra[first + thread] = codes_word(thread);
    }
    if (thread < LOW_WORDS && !is_value) {
      let q = 4u * thread;
      extra[place * EXTRA + thread] = low[q] | (low[q + 1u] << 8u) | (low[q + 2u] << 16u) | (low[q + 3u] << 24u);
    }
  }
}
