// Of several tokens of a sequence: rotate.wgsl turned their queries, and all of their keys are in the cache.
@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> keys: array<Quad>;
@group(0) @binding(2) var<storage, read> values: array<Quad>;
@group(0) @binding(3) var<storage, read> extra: array<u32>;  // (SLOTS, KV_HEADS, EXTRA), where SCALED
@group(0) @binding(4) var<storage, read> bias: array<f32>;  // of a row of qkv; then each head's sink
@group(0) @binding(5) var<storage, read> offsets: array<vec2<f32>>;  // (BLOCK + blocks, HALF): within, then blocks
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> batch: Batch;

fn begin_token(token: u32, head: u32, kv_head: u32, thread: u32) {
  if (thread < QUADS) {
    let row = token * (HEADS + 2u * KV_HEADS) * QUADS;
    query[thread] = qkv[row + head * QUADS + thread] / sqrt(f32(HEAD_DIM));
  }
  workgroupBarrier();
}

fn newest_score() -> f32 {
  return 0.0;  // asked of a lone token only
}

fn newest_value(quad: u32) -> vec4<f32> {
  return vec4<f32>(0.0);
}
