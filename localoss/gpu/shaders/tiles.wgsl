// Rows of a matrix in tiles times up to M vectors: the loop that all products share.
// A row group is 8 rows, BLOCKS tiles one after the other. A workgroup of THREADS takes one row group; LANES of
// them share a tile, and each takes 4 of its rows (its half) and 4 * QUADS of its columns.
var<workgroup> products: array<vec4<f32>, M * THREADS>;

// Two float16 numbers; unpack2x16float may take subnormal ones for zero.
fn two_f16(word: u32) -> vec2<f32> {
  let h = vec2<u32>(word & 0xFFFFu, word >> 16u);
  let size = h & vec2<u32>(0x7FFFu);
  let normal = bitcast<vec2<f32>>((size << vec2<u32>(13u)) + vec2<u32>(112u << 23u));
  let small = vec2<f32>(size) * 5.9604645e-8;
  let value = select(normal, small, size < vec2<u32>(0x400u));
  return select(value, -value, h > vec2<u32>(0x7FFFu));
}

// Leave in products[m * THREADS + half] the products of rows 4 * half to 4 * half + 3 with vector m.
// tile: the row group's first in `codes`; scale_at: its first in `scales`; rows: where vectors begin in `x`.
fn multiply(tile: u32, scale_at: u32, rows: array<u32, M>, thread: u32) {
  let lane = thread % LANES;
  let column = lane / 2u * QUADS;
// each m
  var sum_@ = vec4<f32>(0.0);
// end
  for (var b = thread / LANES; b < BLOCKS; b += THREADS / LANES) {
    let w = decode(tile + b * CODE_VECTORS, lane);
    let s = scale(scale_at + b * SCALE_WORDS, lane % 2u);
    let at = 8u * b + column;
// each m
    var value_@ = input(rows[@], at) * w[0];
// each q
    value_@ += input(rows[@], at + $u) * w[$];
// end
    sum_@ += s * (UNIT * value_@);
// end
  }
// each m
  products[@u * THREADS + thread] = sum_@;
// end
  add_up(thread);
}
