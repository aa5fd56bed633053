// Tiles of MXFP4: vec4 number 2 * j + half has columns 8 * j to 8 * j + 7 of rows 4 * half to 4 * half + 3.
// In a row's word, byte i has column i in its low nibble and column 4 + i in its high one.
const LANES = 8u;  // threads that share a tile
const QUADS = 2u;  // of columns that each takes
const CODE_VECTORS = 8u;
const SCALE_WORDS = 2u;

// Four E2M1 numbers, one in the low nibble of each byte, to twice their value.
fn doubled(n: u32) -> vec4<f32> {
  let big = (n >> 2u) & 0x01010101u;
  let t = n & (big * 3u);
  let most = t & (t >> 1u) & 0x01010101u;
  let size = (n & 0x07070707u) + t + (most << 1u);  // 0 1 2 3 4 6 8 12
  let minus = (n >> 3u) & ((size + 0x7F7F7F7Fu) >> 7u) & 0x01010101u;  // not of -0, whose carry would leak
  return vec4<f32>(unpack4xI8((size ^ (minus * 255u)) + minus));
}

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let w = codes[tile + lane];
  let low = w & vec4<u32>(0x0F0F0F0Fu);
  let high = (w >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu);
  return array<mat4x4<f32>, QUADS>(
    mat4x4<f32>(doubled(low.x), doubled(low.y), doubled(low.z), doubled(low.w)),
    mat4x4<f32>(doubled(high.x), doubled(high.y), doubled(high.z), doubled(high.w)));
}

// 2^(s - 127), halved since the codes come doubled; what would be subnormal counts as zero.
fn scale(at: u32, half: u32) -> vec4<f32> {
  let s = (vec4<u32>(scales[at + half]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
  return bitcast<vec4<f32>>(select(vec4<u32>(0u), (s - 1u) << vec4<u32>(23u), s > vec4<u32>(1u)));
}
