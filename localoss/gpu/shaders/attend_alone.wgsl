// Of one token of a sequence, which is turned here. Each workgroup makes of its key and value what the cache
// will hold, and goes by that; the first one of those that share a key head writes it there.
const SIDE = THREADS / 4u;  // threads that turn the query, as many for the key, and for the value

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(2) var<storage, read_write> values: array<Quad>;
@group(0) @binding(3) var<storage, read_write> extra: array<u32>;  // (SLOTS, KV_HEADS, EXTRA), where SCALED
@group(0) @binding(4) var<storage, read> bias: array<f32>;  // of a row of qkv; then each head's sink
@group(0) @binding(5) var<storage, read> offsets: array<vec2<f32>>;  // (BLOCK + blocks, HALF): within, then blocks
@group(0) @binding(6) var<storage, read> angles: array<vec2<f32>>;  // (T, HALF): cosine and sine
@group(0) @binding(7) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(8) var<uniform> batch: Batch;

fn begin_token(token: u32, head: u32, kv_head: u32, thread: u32) {
  let side = thread / SIDE;
  let i = thread % SIDE;
  let its = select(head, HEADS + kv_head + select(0u, KV_HEADS, side == 2u), side > 0u);
  if (side < 3u && i < HALF) {
    let row = (token * (HEADS + 2u * KV_HEADS) + its) * HEAD_DIM;
    var pair = vec2<f32>(qkv[row + i], qkv[row + i + HALF]);
    if (side < 2u) {
      pair = turned(pair, angles[token * HALF + i]);
    }
    if (SCALED && side == 1u) {
      pair -= turned_bias(its, i, batch.position);
    }
    turned_heads[side * HEAD_DIM + i] = pair.x;
    turned_heads[side * HEAD_DIM + i + HALF] = pair.y;
  }
  workgroupBarrier();
  if (thread < QUADS) {
    query[thread] = quad_of(0u, thread) / sqrt(f32(HEAD_DIM));
  }
  let place = batch.position % SLOTS * KV_HEADS + kv_head;
  keep(side, side == 2u, place, side > 0u && head % GROUP == 0u, i);
  workgroupBarrier();
}

fn newest_score() -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < QUADS; i++) {
    sum += dot(query[i], kept[QUADS + i]);
  }
  return sum;
}

fn newest_value(quad: u32) -> vec4<f32> {
  return kept[2u * QUADS + quad];
}
