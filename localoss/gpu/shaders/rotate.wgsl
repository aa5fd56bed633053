// Rotate queries and keys of qkv (T, (HEADS + 2 * KV_HEADS) * HEAD_DIM) in place, and write keys and values to
// the cache: (SLOTS, KV_HEADS, HEAD_DIM), position p in slot p % SLOTS. A workgroup per head and token.
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // (T, HALF): cosine and sine
@group(0) @binding(2) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(3) var<storage, read_write> values: array<Quad>;
@group(0) @binding(4) var<storage, read_write> extra: array<u32>;  // (SLOTS, KV_HEADS, EXTRA), where SCALED
@group(0) @binding(5) var<storage, read> bias: array<f32>;  // of a row of qkv
@group(0) @binding(6) var<storage, read> offsets: array<vec2<f32>>;  // (BLOCK + blocks, HALF): see attend_many.wgsl
@group(0) @binding(7) var<uniform> batch: Batch;

@compute @workgroup_size(HALF)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let token = batch.first_row + id.y;
  let row = (token * (HEADS + 2u * KV_HEADS) + id.x) * HEAD_DIM;
  var pair = vec2<f32>(qkv[row + thread], qkv[row + thread + HALF]);
  if (id.x < HEADS + KV_HEADS) {
    pair = turned(pair, angles[token * HALF + thread]);
  }
  if (id.x < HEADS) {
    qkv[row + thread] = pair.x;
    qkv[row + thread + HALF] = pair.y;
    return;
  }
  let is_value = id.x >= HEADS + KV_HEADS;
  let position = batch.position + id.y;
  if (SCALED && !is_value) {
    pair -= turned_bias(id.x, thread, position);
  }
  turned_heads[thread] = pair.x;
  turned_heads[thread + HALF] = pair.y;
  workgroupBarrier();
  keep(0u, is_value, position % SLOTS * KV_HEADS + (id.x - HEADS) % KV_HEADS, true, thread);
}
