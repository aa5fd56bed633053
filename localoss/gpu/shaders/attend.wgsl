// out (T, HEADS * HEAD_DIM): attention of one head and token per workgroup, with its sink and, unless WINDOW is
// 0, within its window. Keys come KEYS at a time. Source: online softmax, https://arxiv.org/abs/1805.02867.
const KEYS = 256u;
const PARTS = THREADS / QUADS;  // threads that share the keys of four columns of the result
const GROUP = HEADS / KV_HEADS;
const NONE = -3.0e38;

var<workgroup> query: array<vec4<f32>, QUADS>;
var<workgroup> weights: array<f32, KEYS>;
var<workgroup> parts: array<vec4<f32>, THREADS>;

// Of the query and the bias of its key head, turned to each block of the keys at hand: what of their product
// goes with the cosine and the sine of a position within the block.
var<workgroup> turns: array<vec2<f32>, (KEYS / BLOCK + 1u) * HALF>;

fn turn_query(first: u32, head: u32, i: u32) {
  let at = (HEADS + head) * HEAD_DIM + i % HALF;
  let b = turned(vec2<f32>(bias[at], bias[at + HALF]), offsets[(BLOCK + first + i / HALF) * HALF + i % HALF]);
  let j = i % HALF;
  let x = query[j / 4u][j % 4u];
  let y = query[(j + HALF) / 4u][(j + HALF) % 4u];
  turns[i] = vec2<f32>(x * b.x + y * b.y, y * b.x - x * b.y);
}

fn cached_score(place: u32) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < QUADS; i++) {
    if (SCALED) {
      let low = byte_of(extra[place * EXTRA + i / 4u], i);
      let scale = scale_of(byte_of(extra[place * EXTRA + KEY_SCALES + i / 16u], i / 4u));
      sum += scale * dot(query[i], key_from_cache(keys[place * QUADS + i], low));
    } else {
      sum += dot(query[i], from_cache(keys[place * QUADS + i]));
    }
  }
  return sum;
}

// newest: it is the token's own, which attend_alone.wgsl has at hand and the cache may not have yet.
fn score(key: u32, head: u32, first_block: u32, newest: bool) -> f32 {
  var sum: f32;
  if (newest) {
    sum = newest_score();
  } else {
    sum = cached_score(key % SLOTS * KV_HEADS + head);
  }
  if (SCALED) {
    for (var i = 0u; i < HALF; i++) {
      sum += dot(turns[(key / BLOCK - first_block) * HALF + i], offsets[key % BLOCK * HALF + i]);
    }
  }
  return sum;
}

fn cached_value(place: u32, quad: u32) -> vec4<f32> {
  let value = from_cache(values[place * QUADS + quad]);
  if (SCALED) {
    let group = quad / 4u;
    return scale_of(byte_of(extra[place * EXTRA + VALUE_SCALES + group / 4u], group)) * value;
  }
  return value;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let head = id.x / GROUP;
  let token = batch.first_row + id.y;
  let end = batch.position + id.y + 1u;
  var begin = 0u;
  if (WINDOW > 0u && end > WINDOW) {
    begin = end - WINDOW;
  }
  begin_token(token, id.x, head, thread);

  let sink = bias[(HEADS + 2u * KV_HEADS) * HEAD_DIM + id.x];
  var largest = sink;
  var total = 0.0;  // of this thread's keys
  var result = vec4<f32>(0.0);  // of this thread's part of them
  for (var base = begin; base < end; base += KEYS) {
    if (SCALED) {
      for (var i = thread; i < (KEYS / BLOCK + 1u) * HALF; i += THREADS) {
        turn_query(base / BLOCK, head, i);
      }
      workgroupBarrier();
    }
    var top = NONE;
    for (var i = thread; i < KEYS; i += THREADS) {
      var s = NONE;
      if (base + i < end) {
        s = score(base + i, head, base / BLOCK, ALONE && base + i + 1u == end);
      }
      weights[i] = s;
      top = max(top, s);
    }
    let new_largest = max(largest, largest_of(top, thread));
    let shrink = exp(largest - new_largest);
    largest = new_largest;
    total *= shrink;
    result *= shrink;
    for (var i = thread; i < KEYS; i += THREADS) {
      var w = 0.0;
      if (base + i < end) {
        w = exp(weights[i] - largest);
      }
      total += w;
      weights[i] = w;
    }
    workgroupBarrier();
    if (thread < PARTS * QUADS) {
      for (var i = thread / QUADS; i < min(KEYS, end - base); i += PARTS) {
        if (ALONE && base + i + 1u == end) {
          result += weights[i] * newest_value(thread % QUADS);
        } else {
          result += weights[i] * cached_value((base + i) % SLOTS * KV_HEADS + head, thread % QUADS);
        }
      }
    }
    workgroupBarrier();
  }

  parts[thread] = result;
  let whole = sum_of(total, thread);
  if (thread < QUADS) {
    var sum = parts[thread];
    for (var p = 1u; p < PARTS; p++) {
      sum += parts[p * QUADS + thread];
    }
    let weight = whole + exp(sink - largest);
    out[token * HEADS * QUADS + id.x * QUADS + thread] = sum / weight;
  }
}
