// Turned heads, SIDES at once, and what the cache makes of keys and values: written there, and in `kept`.
var<workgroup> turned_heads: array<f32, SIDES * HEAD_DIM>;
var<workgroup> kept: array<vec4<f32>, SIDES * QUADS>;  // as they are read from the cache, scaled
var<workgroup> codes: array<u32, SIDES * LOW_WORDS>;  // of the groups' scales
var<workgroup> low: array<u32, SIDES * 4u * LOW_WORDS>;

fn quad_of(side: u32, quad: u32) -> vec4<f32> {
  let at = side * HEAD_DIM + 4u * quad;
  return vec4<f32>(turned_heads[at], turned_heads[at + 1u], turned_heads[at + 2u], turned_heads[at + 3u]);
}

fn largest(side: u32, group: u32) -> f32 {
  var size = 0.0;
  for (var i = 16u * group; i < min(16u * group + 16u, HEAD_DIM); i++) {
    size = max(size, abs(turned_heads[side * HEAD_DIM + i]));
  }
  return size;
}

// Bytes 4 * word to 4 * word + 3 of a side's `codes` in one.
fn codes_word(side: u32, word: u32) -> u32 {
  var all = 0u;
  for (var i = 0u; i < 4u; i++) {
    if (4u * word + i < LOW_WORDS) {
      all |= codes[side * LOW_WORDS + 4u * word + i] << (8u * i);
    }
  }
  return all;
}

// What an int8 cache takes off a pair of a key's channels: its bias, turned to the position.
fn turned_bias(head: u32, i: u32, position: u32) -> vec2<f32> {
  let at = head * HEAD_DIM + i;
  let block = turned(vec2<f32>(bias[at], bias[at + HALF]), offsets[(BLOCK + position / BLOCK) * HALF + i]);
  return turned(block, offsets[position % BLOCK * HALF + i]);
}

// By all threads of a workgroup: those of a side keep its head, a value or a key, at `place` of the cache if
// writes; sides that there aren't wait. i: of a thread in its side.
fn keep(side: u32, is_value: bool, place: u32, writes: bool, i: u32) {
  let is_there = side < SIDES;
  if (SCALED) {
    if (is_there && i < LOW_WORDS) {
      codes[side * LOW_WORDS + i] = scale_code(largest(side, i) * select(1.0 / 511.0, 1.0 / 127.0, is_value));
    }
    if (is_there && i < 4u * LOW_WORDS) {
      low[side * 4u * LOW_WORDS + i] = 0u;
    }
    workgroupBarrier();
  }
  if (is_there && i < QUADS) {
    let v = quad_of(side, i);
    let at = side * QUADS + i;
    if (SCALED) {
      let scale = scale_of(codes[side * LOW_WORDS + i / 4u]);
      let most = vec4<f32>(select(511.0, 127.0, is_value));
      let code = clamp(round(v * (1.0 / scale)), -most, most);
      kept[at] = scale * code;
      let below = vec4<u32>(vec4<i32>(code) & vec4<i32>(3));
      low[side * 4u * LOW_WORDS + i] = below.x | (below.y << 2u) | (below.z << 4u) | (below.w << 6u);
      if (writes && is_value) {
        values[place * QUADS + i] = to_cache(code);
      } else if (writes) {
        keys[place * QUADS + i] = key_to_cache(vec4<i32>(code));
      }
    } else {
      let q = to_cache(v);
      kept[at] = from_cache(q);
      if (writes && is_value) {
        values[place * QUADS + i] = q;
      } else if (writes) {
        keys[place * QUADS + i] = q;
      }
    }
  }
  if (SCALED) {
    workgroupBarrier();
    if (is_there && writes && i < SCALE_WORDS) {
      let first = place * EXTRA + select(KEY_SCALES, VALUE_SCALES, is_value);
      extra[first + i] = codes_word(side, i);
    }
    if (is_there && writes && !is_value && i < LOW_WORDS) {
      let q = side * 4u * LOW_WORDS + 4u * i;
      extra[place * EXTRA + i] = low[q] | (low[q + 1u] << 8u) | (low[q + 2u] << 16u) | (low[q + 3u] << 24u);
    }
  }
}
