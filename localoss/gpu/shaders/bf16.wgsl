// Tiles of bfloat16: vec4 number 2 * p + half has columns 2 * p and 2 * p + 1 of rows 4 * half to 4 * half + 3.
const LANES = 16u;  // threads that share a tile
const QUADS = 1u;  // of columns that each takes
const CODE_VECTORS = 32u;
const UNIT = 1.0;  // what decode's numbers are to be multiplied by
const SCALE_WORDS = 0u;

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let at = tile + 4u * (lane / 2u) + lane % 2u;
  let first = codes[at];
  let second = codes[at + 2u];
  let top = vec4<u32>(0xFFFF0000u);
  // One row of columns at a time; transposed, one column of weights for each row of the matrix.
  return array<mat4x4<f32>, QUADS>(transpose(mat4x4<f32>(
    bitcast<vec4<f32>>(first << vec4<u32>(16u)), bitcast<vec4<f32>>(first & top),
    bitcast<vec4<f32>>(second << vec4<u32>(16u)), bitcast<vec4<f32>>(second & top))));
}

fn scale(at: u32, half: u32) -> vec4<f32> {
  return vec4<f32>(1.0);
}
